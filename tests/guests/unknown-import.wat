;; A component that wants an interface that no host offers.
(component
  (import "acme:cloud/storage@1.0.0" (instance $wanted (export "handle" (func))))
  (core module $code
    (func (export "describe")))
  (core instance $instance (instantiate $code))
  (func $describe (canon lift (core func $instance "describe")))
  (instance $job (export "describe" (func $describe)))
  (export "sqjobs:job/job@1.0.0" (instance $job)))
