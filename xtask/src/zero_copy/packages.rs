//! Debian packages, downloaded by name and unpacked into a folder. Nothing is installed: apt works on lists, a cache and a
//! status file of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// Where the guest's kernel comes from: drivers of virtual NICs have zero-copy AF_XDP in the kernels of this suite, and refuse it in
/// 6.12 (EOPNOTSUPP).
const KERNEL_SUITE: &str = "trixie-backports";
/// What runs here: the machine, what the guest's file system is made of and with.
const TOOLS: [&str; 6] = ["qemu-system-x86", "busybox-static", "cpio", "ethtool", "xz-utils", "zstd"];
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// The packages that are there after [`Packages::get`].
pub(super) struct Packages {
    folder: PathBuf,
}

impl Packages {
    /// Gets the tools and the kernel of a flavour (`amd64`, `cloud-amd64`), unless `folder` has them from before.
    pub(super) fn get(folder: &Path, flavour: &str) -> Result<Self> {
        let packages = Self { folder: folder.to_owned() };
        let missing = |what: &str| !packages.is_complete(what);
        if missing("tools") || missing(flavour) {
            let apt = Apt::new(folder)?;
            if missing("tools") {
                apt.get_tools(&packages.path("tools"))?;
            }
            if missing(flavour) {
                apt.get_kernel(flavour, &packages.path(flavour))?;
            }
        }
        Ok(packages)
    }

    fn path(&self, what: &str) -> PathBuf {
        self.folder.join(what)
    }

    fn is_complete(&self, what: &str) -> bool {
        self.path(what).join(COMPLETE).exists()
    }

    /// Where a path of the tools is: theirs, or the system's, where the package is installed.
    pub(super) fn tool(&self, path: &str) -> PathBuf {
        let own = self.path("tools").join(path);
        if own.exists() { own } else { Path::new("/").join(path) }
    }

    /// A program of the tools, with their libraries.
    pub(super) fn command(&self, path: &str) -> Command {
        let mut command = crate::process::command(&self.tool(path).to_string_lossy());
        command.env("LD_LIBRARY_PATH", self.libraries());
        command
    }

    /// For the dynamic linker.
    pub(super) fn libraries(&self) -> String {
        let tools = self.path("tools");
        ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"].map(|at| tools.join(at).display().to_string()).join(":")
    }

    /// The folder of a kernel: `vmlinuz`, and `kernel/` with its modules.
    pub(super) fn kernel(&self, flavour: &str) -> Result<PathBuf> {
        let versions = self.path(flavour).join("usr/lib/modules");
        let mut versions = fs::read_dir(&versions).with_context(|| format!("reading {}", versions.display()))?;
        Ok(versions.next().context("the kernel's package has no modules")??.path())
    }
}

/// In a folder of packages when all of them are there.
const COMPLETE: &str = ".complete";

/// apt with everything of its own but what is installed, which is a copy.
struct Apt {
    folder: PathBuf,
    suite: String,
}

impl Apt {
    fn new(folder: &Path) -> Result<Self> {
        let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
        let field = |name: &str| release.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        let (Some("debian"), Some(suite)) = (field("ID"), field("VERSION_CODENAME")) else {
            bail!("the guest is made of Debian's packages, which apt gets on Debian alone");
        };
        let mirror = mirror(suite)?;
        let folder = std::path::absolute(folder)?.join("apt");
        for path in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(folder.join(path))?;
        }
        let backports = format!("{suite}-backports");
        let mut suites = vec![suite, &backports, KERNEL_SUITE];
        suites.dedup();
        let sources: String =
            suites.iter().map(|suite| format!("deb [signed-by={KEYRING}] {mirror} {suite} main\n")).collect();
        fs::write(folder.join("sources.list"), sources)?;
        fs::copy("/var/lib/dpkg/status", folder.join("status"))?;
        let root = folder.display();
        let config = format!(
            "Dir::Etc::sourcelist \"{root}/sources.list\";\nDir::Etc::sourceparts \"-\";\nDir::State \"{root}\";\n\
             Dir::State::lists \"{root}/lists\";\nDir::State::status \"{root}/status\";\nDir::Cache \"{root}/cache\";\n\
             APT::Sandbox::User \"\";\nAPT::Install-Recommends \"false\";\nAcquire::Languages \"none\";\n"
        );
        fs::write(folder.join("apt.conf"), config)?;
        let apt = Self { folder, suite: backports };
        apt.run("apt-get", &["-qq", "update"])?;
        Ok(apt)
    }

    /// Runs a program of apt; what it says.
    fn run(&self, program: &str, arguments: &[&str]) -> Result<String> {
        let mut command = crate::process::command(program);
        command.args(arguments).env("APT_CONFIG", self.folder.join("apt.conf")).current_dir(&self.folder);
        let output = command.stderr(Stdio::inherit()).output().with_context(|| format!("running {program}"))?;
        if !output.status.success() {
            bail!("{program} {}: {}", arguments.join(" "), output.status);
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// The tools and what they need that this system has not.
    fn get_tools(&self, to: &Path) -> Result<()> {
        let arguments = ["-qq", "--yes", "--download-only", "--target-release", &self.suite, "install"];
        self.run("apt-get", &[&arguments[..], &TOOLS].concat())?;
        unpack(&self.folder.join("cache/archives"), to)
    }

    /// The newest kernel of a flavour: the program and its modules.
    fn get_kernel(&self, flavour: &str, to: &Path) -> Result<()> {
        let newest = format!("linux-modules-{flavour}");
        let depends = self.run("apt-cache", &["--target-release", KERNEL_SUITE, "depends", &newest])?;
        let version = kernel_version(&depends).with_context(|| format!("{KERNEL_SUITE} has no {newest}"))?;
        let packages = ["binary", "modules"].map(|part| format!("linux-{part}-{version}"));
        self.run("apt-get", &["-qq", "download", &packages[0], &packages[1]])?;
        unpack(&self.folder, to)
    }
}

/// Where this system gets the packages of its suite.
fn mirror(suite: &str) -> Result<String> {
    let mut apt = Command::new("apt-get");
    apt.args(["indextargets", "--format", "$(REPO_URI) $(RELEASE)", "Identifier: Packages"]);
    let output = apt.output().context("running apt-get")?;
    let targets = String::from_utf8_lossy(&output.stdout);
    let mirror = targets.lines().find_map(|line| line.strip_suffix(suite)?.strip_suffix(' '));
    mirror.map(str::to_owned).with_context(|| format!("no source of apt has {suite}"))
}

/// The version in what the package of the newest modules depends on.
fn kernel_version(depends: &str) -> Option<&str> {
    let modules = depends.lines().filter_map(|line| line.trim().strip_prefix("Depends: linux-modules-"));
    modules.into_iter().find(|version| version.starts_with(|first: char| first.is_ascii_digit()))
}

/// Unpacks every package of a folder into another, and removes it.
fn unpack(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "deb") {
            crate::process::check_interrupt()?;
            let unpacked = Command::new("dpkg-deb").arg("--extract").arg(&path).arg(to).status();
            if !unpacked.context("running dpkg-deb")?.success() {
                bail!("dpkg-deb could not unpack {}", path.display());
            }
            fs::remove_file(&path)?;
        }
    }
    Ok(fs::write(to.join(COMPLETE), "")?)
}

#[cfg(test)]
mod tests {
    use super::kernel_version;

    #[test]
    fn the_newest_kernel_is_found() {
        let depends = "linux-modules-cloud-amd64\n  Depends: linux-base-cloud-amd64\n  \
                       Depends: linux-modules-7.3.4+deb13-cloud-amd64\n";
        assert_eq!(kernel_version(depends), Some("7.3.4+deb13-cloud-amd64"));
        assert_eq!(kernel_version("linux-modules-cloud-amd64\n"), None);
    }
}
