;; A component built for a version of the job interface that no host knows yet.
(component
  (core module $code
    (func (export "describe")))
  (core instance $instance (instantiate $code))
  (func $describe (canon lift (core func $instance "describe")))
  (instance $job (export "describe" (func $describe)))
  (export "sqjobs:job/job@2.0.0" (instance $job)))
