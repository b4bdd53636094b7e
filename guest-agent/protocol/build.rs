//! Generates the ttrpc services and messages of `proto/`.

use std::path::Path;

const MODULES: &str = "pub mod agent;\npub mod agent_ttrpc;\npub mod pod;\npub mod pod_ttrpc;\npub mod shim;\npub mod shim_ttrpc;\n";

fn main() -> std::io::Result<()> {
    println!("cargo:rerun-if-changed=proto");
    let out = std::env::var("OUT_DIR").map_err(std::io::Error::other)?;
    ttrpc_codegen::Codegen::new()
        .out_dir(&out)
        .include("proto")
        .inputs(["proto/agent.proto", "proto/pod.proto", "proto/shim.proto"])
        .rust_protobuf()
        .customize(ttrpc_codegen::Customize { async_all: true, ..Default::default() })
        .rust_protobuf_customize(ttrpc_codegen::ProtobufCustomize::default().gen_mod_rs(false))
        .run()?;
    std::fs::write(Path::new(&out).join("mod.rs"), MODULES)
}
