import { brotliCompressSync, gzipSync } from 'node:zlib';
import { defineConfig, type Plugin } from 'vite';

/** Smaller ones would not become smaller. */
const WORTH_COMPRESSING_BYTES = 512;

/** Puts `.gz` and `.br` beside each file, so that the edge serves what was compressed once and as well as can be. */
const compressed: Plugin = {
  name: 'compressed',
  generateBundle: {
    order: 'post',
    handler(_, bundle) {
      for (const output of Object.values(bundle)) {
        if (output.fileName.endsWith('.map')) continue;
        const bytes = Buffer.from(output.type === 'chunk' ? output.code : output.source);
        if (bytes.length < WORTH_COMPRESSING_BYTES) continue;
        this.emitFile({
          type: 'asset',
          fileName: `${output.fileName}.gz`,
          source: gzipSync(bytes, { level: 9 }),
        });
        this.emitFile({
          type: 'asset',
          fileName: `${output.fileName}.br`,
          source: brotliCompressSync(bytes),
        });
      }
    },
  },
};

// Assets are hashed, so the gateway may call them immutable; the HTML holds nothing about anybody.
export default defineConfig({
  build: { target: 'es2022', sourcemap: true, modulePreload: { polyfill: false }, assetsInlineLimit: 0 },
  plugins: [compressed],
  server: { proxy: { '/v1': 'http://127.0.0.1:8080' } },
});
