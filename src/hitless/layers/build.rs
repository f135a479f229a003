//! Says that the proofs of the crate are here. A service is generated without them, and without this.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-cfg=proofs");
}
