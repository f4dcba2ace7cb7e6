//! Generated from `wit/`: the exports that the host calls, and the imports it offers.
#![allow(missing_docs, clippy::all)]

wasmtime::component::bindgen!({
    path: "../wit",
    world: "job-module",
    imports: {
        "sqjobs:job/add-job.add": async | trappable,
        default: trappable,
    },
    exports: { default: async },
});
