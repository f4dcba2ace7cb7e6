;; A component that exports the job interface by name, but with other functions: `describe`
;; returns nothing, and the stages are missing.
(component
  (core module $code
    (func (export "describe")))
  (core instance $instance (instantiate $code))
  (func $describe (canon lift (core func $instance "describe")))
  (instance $job (export "describe" (func $describe)))
  (export "sqjobs:job/job@1.0.0" (instance $job)))
