;; A component of another world: it exports something, but no job.
(component
  (core module $code
    (func (export "run")))
  (core instance $instance (instantiate $code))
  (func $run (canon lift (core func $instance "run")))
  (instance $command (export "run" (func $run)))
  (export "wasi:cli/run@0.2.0" (instance $command)))
