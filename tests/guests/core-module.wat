;; WebAssembly, but no component: what `--target wasm32-unknown-unknown` makes.
(module
  (func (export "run")))
