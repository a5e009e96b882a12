import { defineConfig } from 'vite';

// Assets are hashed, so the gateway may call them immutable; the HTML holds nothing about anybody.
export default defineConfig({
  build: { target: 'es2022', sourcemap: true, modulePreload: { polyfill: false }, assetsInlineLimit: 0 },
  server: { proxy: { '/v1': 'http://127.0.0.1:8080' } },
});
