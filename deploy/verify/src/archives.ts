import { gunzipSync, inflateRawSync } from 'node:zlib';

/** One file of an archive; its bytes are unpacked when they are asked for. */
export interface ArchiveEntry {
  readonly name: string;
  readonly read: () => Buffer;
}

const END_OF_ZIP = 0x06054b50;
const ZIP_COMMENT_MAX = 65_535;
const DEFLATED = 8;

/** The files of a ZIP (also a Python wheel), by its central directory. ZIP64 and encryption are not known here. */
export function zipEntries(zip: Buffer): ArchiveEntry[] {
  const end = endOfCentralDirectory(zip);
  const count = zip.readUInt16LE(end + 10);
  const entries: ArchiveEntry[] = [];
  for (let at = zip.readUInt32LE(end + 16), seen = 0; seen < count; seen += 1) {
    const method = zip.readUInt16LE(at + 10);
    const packedSize = zip.readUInt32LE(at + 20);
    const nameLength = zip.readUInt16LE(at + 28);
    const header = zip.readUInt32LE(at + 42);
    const name = zip.toString('utf8', at + 46, at + 46 + nameLength);
    const read = () => {
      // The header beside the data has lengths of its own, which may differ from those in the directory.
      const start = header + 30 + zip.readUInt16LE(header + 26) + zip.readUInt16LE(header + 28);
      const packed = zip.subarray(start, start + packedSize);
      return method === DEFLATED ? inflateRawSync(packed) : Buffer.from(packed);
    };
    if (!name.endsWith('/')) entries.push({ name, read });
    at += 46 + nameLength + zip.readUInt16LE(at + 30) + zip.readUInt16LE(at + 32);
  }
  return entries;
}

function endOfCentralDirectory(zip: Buffer): number {
  for (let at = zip.length - 22; at >= Math.max(0, zip.length - 22 - ZIP_COMMENT_MAX); at -= 1) {
    if (zip.readUInt32LE(at) === END_OF_ZIP) return at;
  }
  throw new Error('this is not a ZIP file');
}

const TAR_BLOCK = 512;

/** The plain files of a gzipped tar, such as an npm package. */
export function tgzEntries(tgz: Buffer): ArchiveEntry[] {
  const tar = gunzipSync(tgz);
  const entries: ArchiveEntry[] = [];
  for (let at = 0; at + TAR_BLOCK <= tar.length && tar[at] !== 0;) {
    const name = text(tar, at, 100);
    const size = Number.parseInt(text(tar, at + 124, 12).trim(), 8);
    const prefix = text(tar, at + 345, 155);
    const type = text(tar, at + 156, 1);
    if (!Number.isSafeInteger(size)) throw new Error(`a damaged tar header at byte ${at}`);
    const start = at + TAR_BLOCK;
    if (type === '0' || type === '') {
      const path = prefix === '' ? name : `${prefix}/${name}`;
      entries.push({ name: path, read: () => Buffer.from(tar.subarray(start, start + size)) });
    }
    at = start + Math.ceil(size / TAR_BLOCK) * TAR_BLOCK;
  }
  return entries;
}

function text(tar: Buffer, at: number, length: number): string {
  const field = tar.subarray(at, at + length);
  const end = field.indexOf(0);
  return field.toString('utf8', 0, end < 0 ? length : end);
}
