;; A component that wants the network, which needs a grant.
(component
  (import "wasi:http/outgoing-handler@0.2.0" (instance $wanted (export "handle" (func))))
  (core module $code
    (func (export "describe")))
  (core instance $instance (instantiate $code))
  (func $describe (canon lift (core func $instance "describe")))
  (instance $job (export "describe" (func $describe)))
  (export "sqjobs:job/job@1.0.0" (instance $job)))
