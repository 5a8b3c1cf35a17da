//! `cargo xtask ebpf`: builds the XDP program into the object that is committed and embedded.
//!
//! The bytes depend on the sources and the toolchain, not on where the checkout or the crates lie: CI builds them again
//! and compares. Users of Pilot need none of what this needs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

/// The linker that makes BPF of LLVM bitcode. This version's default feature borrows the LLVM of rustc 1.95, so that the
/// two understand each other; others may give other bytes.
const LINKER_VERSION: &str = "0.10.3";
/// BPF, little-endian: what x86-64 and arm64 load.
const TARGET: &str = "bpfel-unknown-none";
/// The instruction set: 32-bit registers and jumps, which kernels have since 5.1. The program's `frags` need 5.18.
const CPU: &str = "v3";
/// Where `rust-src` is when rustup has none for this toolchain: a path to its folder `library`.
const RUST_SRC: &str = "PILOT_RUST_SRC";

/// Builds the object and writes it, with the versions that made it, to `pilot-ebpf/dist`. With `check`, builds it from
/// nothing in a temporary folder, lints it there, and fails unless clippy is content and the bytes are those of `dist`.
pub(crate) fn run(check: bool) -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("xtask lies in the workspace")?;
    let dist = root.join("pilot-ebpf/dist");
    let (object, versions) = (dist.join("pilot.bpf.o"), dist.join("TOOLCHAIN"));
    let toolchain = toolchain(root)?;

    if !check {
        let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
        let built = build(root, &std::path::absolute(target.join("ebpf"))?)?;
        fs::create_dir_all(&dist)?;
        fs::write(&object, &built).with_context(|| format!("cannot write {}", object.display()))?;
        fs::write(&versions, toolchain).with_context(|| format!("cannot write {}", versions.display()))?;
        println!("{}: {} bytes", object.display(), built.len());
        return Ok(());
    }

    let recorded = fs::read_to_string(&versions).with_context(|| format!("cannot read {}", versions.display()))?;
    ensure!(
        recorded == toolchain,
        "another toolchain than that of {}, recorded:\n{recorded}here:\n{toolchain}",
        object.display()
    );
    let target = std::env::temp_dir().join(format!("pilot-ebpf-{}", std::process::id()));
    let built = build(root, &target).and_then(|built| lint(root, &target).map(|()| built));
    if target.exists() {
        fs::remove_dir_all(&target).with_context(|| format!("cannot remove {}", target.display()))?;
    }
    let built = built?;
    let committed = fs::read(&object).with_context(|| format!("cannot read {}", object.display()))?;
    ensure!(built == committed, "{} is not what the sources give: run `cargo xtask ebpf`", object.display());
    println!("{}: as the sources give it", object.display());
    Ok(())
}

/// The object's bytes, built in `target_dir`.
fn build(root: &Path, target_dir: &Path) -> Result<Vec<u8>> {
    let status = cargo("build", root, target_dir)?.status().context("cannot run cargo")?;
    ensure!(status.success(), "building pilot-ebpf failed: {status}");
    let object = target_dir.join(TARGET).join("ebpf/pilot");
    fs::read(&object).with_context(|| format!("cannot read {}", object.display()))
}

/// Clippy on the program, which the workspace's other lints leave out because it is for another target.
fn lint(root: &Path, target_dir: &Path) -> Result<()> {
    let mut clippy = cargo("clippy", root, target_dir)?;
    let status = clippy.args(["--", "-D", "warnings"]).status().context("cannot run cargo")?;
    ensure!(status.success(), "clippy on pilot-ebpf failed: {status}");
    Ok(())
}

/// A command of cargo's for the program, its target and its flags.
fn cargo(command: &str, root: &Path, target_dir: &Path) -> Result<Command> {
    let library = rust_src()?;
    // Paths that could get into the object, and what to call them everywhere.
    let home = || std::env::home_dir().map(|home| home.join(".cargo"));
    let crates =
        std::env::var_os("CARGO_HOME").map(PathBuf::from).or_else(home).context("no CARGO_HOME and no home")?;
    let flags = [
        format!("-Ctarget-cpu={CPU}"),
        format!("--remap-path-prefix={}=/pilot", root.display()),
        format!("--remap-path-prefix={}=/cargo", crates.display()),
        format!("--remap-path-prefix={}=/rust/library", library.display()),
    ];
    let mut cargo = Command::new(env!("CARGO"));
    cargo
        .current_dir(root)
        .args([command, "--quiet", "--locked", "--package=pilot-ebpf", "--profile=ebpf", "-Zbuild-std=core"])
        .arg(format!("--target={TARGET}"))
        .arg("--target-dir")
        .arg(target_dir)
        // Stable rustc, allowed what only the building of `core` needs.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("__CARGO_TESTS_ONLY_SRC_ROOT", &library)
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
    Ok(cargo)
}

/// The folder `library` of the standard library's sources.
fn rust_src() -> Result<PathBuf> {
    let sysroot = output(Command::new("rustc").args(["--print", "sysroot"]))?;
    let from_rustup = Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library");
    let library = std::env::var_os(RUST_SRC).map_or(from_rustup, PathBuf::from);
    if library.join("core/Cargo.toml").exists() {
        return Ok(library);
    }
    bail!(
        "no Rust sources in {}: run `rustup component add rust-src`, or set {RUST_SRC} to the folder `library` of the \
         sources of this rustc (Debian's package rust-src of the same version has it)",
        library.display()
    )
}

/// What the object's bytes depend on besides the sources.
fn toolchain(root: &Path) -> Result<String> {
    let install = format!("run `cargo install bpf-linker --version {LINKER_VERSION} --locked`");
    let linker = output(Command::new("bpf-linker").arg("--version")).with_context(|| install.clone())?;
    ensure!(linker.trim() == format!("bpf-linker {LINKER_VERSION}"), "found {}: {install}", linker.trim());
    let rustc = output(Command::new("rustc").arg("--version"))?;
    let mut lines = format!("{}\n{}\n", rustc.trim(), linker.trim());
    let lock = fs::read_to_string(root.join("Cargo.lock")).context("cannot read Cargo.lock")?;
    for (name, version) in lock.lines().zip(lock.lines().skip(1)) {
        let quoted = |line: &str, key| Some(line.strip_prefix(key)?.trim_matches('"').to_owned());
        if let (Some(name), Some(version)) = (quoted(name, "name = "), quoted(version, "version = "))
            && (name.starts_with("aya-ebpf") || name.starts_with("aya-log-"))
        {
            lines += &format!("{name} {version}\n");
        }
    }
    Ok(lines)
}

/// What a command prints.
fn output(command: &mut Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("cannot run {name}"))?;
    ensure!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}
