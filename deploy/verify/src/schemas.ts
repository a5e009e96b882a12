import { Ajv2020 } from 'ajv/dist/2020.js';
import type { Manifest } from './manifests.js';

/**
 * Checks objects against the strict schemas of Kubernetes' own API: every field must exist and have its type. What a
 * server knows besides (references, immutable fields, quotas) only a cluster can tell.
 *
 * @param schemaFile the schemas by file name
 * @returns one sentence for each fault
 */
export function schemaFaults(
  manifests: readonly Manifest[],
  schemaFile: (file: string) => unknown,
): string[] {
  // The schemas use formats such as int32 that say nothing beyond the type.
  const ajv = new Ajv2020({ strict: false, validateFormats: false, allErrors: true });
  ajv.addSchema(schemaFile('_definitions.json') as object, '/api/_definitions.json');
  return manifests.flatMap(({ title, kind, apiVersion, content }) => {
    // networking.k8s.io/v1 → networking-v1, v1 → v1
    const group = apiVersion.replace(/^([^./]*)(\.[^/]*)?\//, '$1-');
    const file = `${kind.toLowerCase()}-${group}.json`;
    const validate = ajv.getSchema(file) ?? compile(ajv, file, schemaFile);
    if (!validate) return [`${title}: Kubernetes has no ${kind} in ${apiVersion}`];
    if (validate(content)) return [];
    return (validate.errors ?? []).map((error) => {
      const field =
        'additionalProperty' in error.params ? ` "${String(error.params['additionalProperty'])}"` : '';
      return `${title}${error.instancePath} ${error.message ?? 'is not valid'}${field}`;
    });
  });
}

function compile(ajv: Ajv2020, file: string, schemaFile: (file: string) => unknown) {
  const schema = schemaFile(file);
  if (typeof schema !== 'object' || schema === null) return undefined;
  ajv.addSchema(schema, file);
  return ajv.getSchema(file);
}
