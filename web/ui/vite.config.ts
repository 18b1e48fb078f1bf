import { defineConfig } from "vitest/config";

export default defineConfig({
  build: {
    outDir: "../static",
    emptyOutDir: true,
    target: "es2022",
    assetsInlineLimit: 0, // the page's Content-Security-Policy knows no data: scripts or styles
    modulePreload: { polyfill: false }, // it would be an inline script
  },
  // The wasm file and its loader stay files of their own: threads start from the loader's address.
  resolve: { conditions: ["onnxruntime-web-use-extern-wasm", "module", "browser", "import"] },
  worker: { format: "es" },
  test: { include: ["tests/**/*.test.ts"] },
});
