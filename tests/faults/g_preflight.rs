//! Whatever `remus preflight` passes, `remus run` and `remus backup` do not refuse for a reason that could be known before,
//! and the other way round: each input is given to both, and both say the same.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, chown, symlink},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use remus::observe::status::Protection;
use rig::{
    host::Share,
    pair::{Pair, exit_code, patience, says, with_hosts},
    remus::{TAP, VM, primary_run_dir},
    topology::BACKUP,
};
use serde_json::Value;

const CONFIG: i32 = 2;
const PREFLIGHT: i32 = 3;

fn write_config(pair: &Pair, config: &str) -> PathBuf {
    let file = pair.folder.path().join("asked.toml");
    fs::write(&file, config).unwrap();
    file
}

/// What preflight says of a config: the checks that are not ok, by name and outcome, each with its text.
async fn preflight(pair: &Pair, config: &str, before: &[&str]) -> Vec<(String, String, String)> {
    let file = write_config(pair, config);
    let words = ["preflight", "--json", file.to_str().unwrap()];
    let (code, said) = pair.remus(&pair.topology.primary, before, &words).await;
    let from = said.find('{').unwrap_or_else(|| panic!("no report: {said}"));
    let json = &said[from..=said.rfind('}').unwrap()];
    let report: Value = serde_json::from_str(json).expect(&said);
    assert_eq!(code, if report["ready"] == true { 0 } else { PREFLIGHT }, "{said}");
    let text = |check: &Value, name: &str| check[name].as_str().unwrap().to_owned();
    let checks = report["checks"].as_array().unwrap().iter();
    checks
        .filter(|check| check["outcome"] != "ok")
        .map(|check| {
            let says = format!("{} -> {}", text(check, "found"), text(check, "remedy"));
            (text(check, "name"), text(check, "outcome"), says)
        })
        .collect()
}

/// Preflight and run refuse the config for `check` alone, in the same words, all of `words` among them.
async fn both_refuse(pair: &Pair, config: &str, before: &[&str], check: &str, words: &[&str]) {
    let links = pair.topology.primary.links().list().await.unwrap();
    let refused = preflight(pair, config, before).await;
    let refused: Vec<_> =
        refused.into_iter().filter(|(_, outcome, _)| outcome == "refused").collect();
    assert_eq!(refused.len(), 1, "{check}: {refused:?}");
    let (name, _, says) = &refused[0];
    assert_eq!(name, check, "{says}");
    for word in words {
        assert!(says.contains(word), "no {word:?} in: {says}");
    }
    let file = write_config(pair, config);
    let words = ["run", file.to_str().unwrap()];
    let (code, said) = pair.remus(&pair.topology.primary, before, &words).await;
    assert_eq!(code, PREFLIGHT, "{said}");
    let found = says.split(" -> ").next().unwrap();
    // How much memory is left changes from one question to the next; all before that number is the same.
    let same = match (check, found.split_once(" leaves ")) {
        ("memory", Some((same, _))) => format!("  {check}: {same} leaves "),
        _ => format!("  {check}: {found}\n"),
    };
    assert!(said.contains(&same), "{same:?} is not in: {said}");
    assert_eq!(
        pair.topology.primary.links().list().await.unwrap(),
        links,
        "a link is left: {said}"
    );
}

/// Preflight passes the config, and the VM runs: it gets protected if a backup is there, else waits for one.
async fn both_pass(pair: &Pair, config: &str, wanted: Protection) {
    let refused = preflight(pair, config, &[]).await;
    assert!(refused.iter().all(|(_, outcome, _)| outcome != "refused"), "{refused:?}");
    let file = write_config(pair, config);
    let mut primary = pair.start_primary_by(&file);
    primary.wait_for(wanted, patience()).await.unwrap();
    primary.process.signal(libc::SIGTERM).unwrap();
    assert_eq!(exit_code(&mut primary.process, "the primary").await, 0, "{}", primary.tail());
}

/// `remus backup` refuses for this check, with these words.
async fn backup_refuses(pair: &Pair, more: &[&str], check: &str, words: &[&str]) {
    let listen = BACKUP.to_string();
    let run_dir = pair.folder.path().join("backup.d");
    fs::create_dir_all(&run_dir).unwrap();
    let run_dir = run_dir.to_str().unwrap();
    let mut arguments = vec!["backup", "--listen", &listen];
    if !more.contains(&"--run-dir") {
        arguments.extend(["--run-dir", run_dir]);
    }
    arguments.extend(more);
    let (code, said) = pair.remus(&pair.topology.backup, &[], &arguments).await;
    assert_eq!(code, PREFLIGHT, "{said}");
    assert!(said.contains(&format!("\n  {check}: ")), "no {check} in: {said}");
    for word in words {
        assert!(said.contains(word), "no {word:?} in: {said}");
    }
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A backup of a usual kind would answer; nobody does here.
fn alone(pair: &Pair) -> String {
    pair.config(&[])
}

#[test]
fn a_state_directory_that_cannot_be_written_or_that_others_may_write_is_refused_in_both_roles() {
    with_hosts(async |pair| {
        let state = pair.folder.path().join("state.d");
        let config = format!("state_dir = {:?}\n{}", path(&state), alone(&pair));
        let both = async |name: &str, words: &[&str], more: &[&str]| {
            both_refuse(&pair, &config, &[], "state directory", words).await;
            let refused = [&["--state-dir", path(&state)], more].concat();
            backup_refuses(&pair, &refused, "state directory", words).await;
            let left = fs::symlink_metadata(&state).unwrap();
            assert!(left.is_file() || fs::read_dir(&state).unwrap().count() == 0, "{name}");
        };
        fs::write(&state, "").unwrap();
        both("a file", &["state.d is not a directory"], &[]).await;
        fs::remove_file(&state).unwrap();
        fs::create_dir(&state).unwrap();
        fs::set_permissions(&state, fs::Permissions::from_mode(0o777)).unwrap();
        both("of all", &["is writable by others", "chmod go-w"], &[]).await;
        fs::set_permissions(&state, fs::Permissions::from_mode(0o755)).unwrap();
        chown(&state, Some(12345), None).unwrap();
        both("of another", &["belongs to uid 12345, not to this user (uid 0)"], &[]).await;
        chown(&state, Some(0), None).unwrap();

        let read_only =
            format!("mount -t tmpfs -o ro,mode=755 none {} && exec \"$@\"", path(&state));
        let read_only = ["unshare", "--mount", "sh", "-c", &read_only, "sh"];
        let words = ["cannot be written to: Read-only file system"];
        both_refuse(&pair, &config, &read_only, "state directory", &words).await;
        let full = format!(
            "mount -t tmpfs -o size=64k,mode=755 none {0} && {{ cat /dev/zero > {0}/x 2> /dev/null; exec \"$@\"; }}",
            path(&state)
        );
        let full = ["unshare", "--mount", "sh", "-c", &full, "sh"];
        both_refuse(&pair, &config, &full, "state directory", &["has 0 bytes left"]).await;
        let inodes = format!(
            "mount -t tmpfs -o nr_inodes=2,mode=755 none {0} && {{ touch {0}/x; exec \"$@\"; }}",
            path(&state)
        );
        let inodes = ["unshare", "--mount", "sh", "-c", &inodes, "sh"];
        both_refuse(&pair, &config, &inodes, "state directory", &["has 0 bytes left"]).await;
    });
}

#[test]
fn a_run_directory_that_is_not_ours_alone_is_refused_in_both_roles() {
    with_hosts(async |pair| {
        let run_dir = pair.folder.path().join("run.d");
        let ours = primary_run_dir(pair.folder.path());
        let config = pair.config(&[(path(&ours), path(&run_dir))]);
        let config =
            format!("state_dir = {:?}\n{config}", path(&pair.folder.path().join("state.d")));
        let both = async |words: &[&str]| {
            both_refuse(&pair, &config, &[], "run directory", words).await;
            backup_refuses(&pair, &["--run-dir", path(&run_dir)], "run directory", words).await;
        };
        fs::create_dir(&run_dir).unwrap();
        chown(&run_dir, Some(12345), None).unwrap();
        both(&["belongs to uid 12345, not to this user (uid 0)"]).await;
        fs::remove_dir(&run_dir).unwrap();
        symlink(pair.folder.path(), &run_dir).unwrap();
        both(&["run.d is not a directory"]).await;
        fs::remove_file(&run_dir).unwrap();
        symlink("/nonexistent", &run_dir).unwrap();
        both(&["run.d is not a directory"]).await;
    });
}

#[test]
fn a_record_that_forbids_a_start_or_cannot_be_read_is_found_by_preflight_too() {
    with_hosts(async |pair| {
        let state = primary_run_dir(pair.folder.path()).join("state");
        fs::create_dir_all(&state).unwrap();
        let record = state.join(format!("{VM}.json"));
        let config = alone(&pair);
        for (text, words) in [
            (r#"{"term":3,"standing":"protected"}"#, ["last ran here protected", "demo.json"]),
            (r#"{"term":3,"standing":"backup"}"#, ["another host spoke", "demo.json"]),
            ("", ["is damaged", "demo.json"]),
        ] {
            fs::write(&record, text).unwrap();
            both_refuse(&pair, &config, &[], "record", &words).await;
            assert_eq!(fs::read_to_string(&record).unwrap(), text, "it was changed");
        }
        fs::remove_file(&record).unwrap();
        fs::create_dir(&record).unwrap();
        both_refuse(&pair, &config, &[], "record", &["Is a directory"]).await;
        fs::remove_dir(&record).unwrap();
        both_pass(&pair, &config, Protection::Unprotected).await;
        let instance = pair.folder.path().join("backup.d/state/instance");
        fs::create_dir_all(instance.parent().unwrap()).unwrap();
        fs::write(&instance, "garbage").unwrap();
        backup_refuses(&pair, &[], "instance", &["is damaged: primaries know this host by"]).await;
    });
}

#[test]
fn a_vm_that_runs_is_not_ready_to_be_run_again() {
    with_hosts(async |pair| {
        let mut primary = pair.start_primary(&[]);
        primary.wait_for(Protection::Unprotected, patience()).await.unwrap();
        both_refuse(&pair, &alone(&pair), &[], "vm", &["demo already runs here (process "]).await;
        primary.still_runs().unwrap();
    });
}

#[test]
fn links_that_are_not_what_they_are_named_for_are_refused_by_both() {
    with_hosts(async |pair| {
        let uplink =
            alone(&pair).replace("release = { trigger", "release = { uplink = \"eth9\", trigger");
        let words = ["eth9 is not there", "gate.release.uplink"];
        both_refuse(&pair, &uplink, &[], "uplink", &words).await;
        let nic = pair.config(&[("\"br0\"", "\"repl0\"")]);
        both_refuse(&pair, &nic, &[], "bridge", &["repl0 is a veth, not a bridge"]).await;
        let said = &preflight(&pair, &nic, &[]).await[0].2;
        assert!(!said.contains("ip link add repl0"), "{said}");
        let lo = pair.config(&[("\"tap0\"", "\"lo\"")]);
        both_refuse(&pair, &lo, &[], "tap", &["lo exists and is a loopback link, not a tap"]).await;
        for name in ["all", "default"] {
            let config = pair.config(&[("\"tap0\"", &format!("{name:?}"))]);
            let file = write_config(&pair, &config);
            for verb in ["preflight", "run"] {
                let words = [verb, path(&file)];
                let (code, said) = pair.remus(&pair.topology.primary, &[], &words).await;
                assert_eq!(code, CONFIG, "{said}");
                assert!(said.contains(&format!("net.tap: no link can be called {name}")), "{said}");
            }
        }
        let listen = BACKUP.to_string();
        let words = ["backup", "--listen", &listen, "--tap", "all"];
        let (code, said) = pair.remus(&pair.topology.backup, &[], &words).await;
        assert_eq!(code, CONFIG, "{said}");
    });
}

#[test]
fn a_default_mask_of_packet_steering_does_not_keep_a_vm_from_running() {
    with_hosts(async |pair| {
        let set = async |mask: &str| {
            let set = format!("echo {mask} > /proc/sys/net/core/rps_default_mask");
            let mut command = Command::new("sh");
            command.args(["-c", &set]);
            let log = pair.log("set");
            let mut set = pair.topology.primary.spawn(command, Share::Load, &log).unwrap();
            assert_eq!(exit_code(&mut set, "the shell").await, 0, "{}", pair.logged("set"));
        };
        set("3").await;
        both_pass(&pair, &alone(&pair), Protection::Unprotected).await;
        set("0").await;
    });
}

#[test]
fn a_kernel_that_is_none_is_refused_before_anything_is_made() {
    with_hosts(async |pair| {
        let guest = pair.programs.guest.clone();
        let whole = fs::read(&guest).unwrap();
        let other = pair.folder.path().join("kernel");
        let config = pair.config(&[(path(&guest), path(&other))]);
        let refused = async |bytes: &[u8], words: &[&str]| {
            fs::write(&other, bytes).unwrap();
            both_refuse(&pair, &config, &[], "guest", words).await;
        };
        refused(&whole[..4096], &["it is cut short: its headers speak of ", "and it has 4096"])
            .await;
        refused(&whole[..32], &["it is cut short"]).await;
        let program = "a program for an operating system, not a kernel";
        refused(&fs::read("/bin/ls").unwrap(), &[program]).await;
        refused(&fs::read(&pair.programs.remus).unwrap(), &[program]).await;
        refused(&[0x1f, 0x8b, 8, 0, 0], &["it is compressed by gzip: unpack it (zcat)"]).await;
        refused(b"", &["it is empty"]).await;
        // What would be waited for.
        fs::remove_file(&other).unwrap();
        let made = Command::new("mkfifo").arg(&other).status().unwrap();
        assert!(made.success());
        both_refuse(&pair, &config, &[], "guest", &["it is not a file"]).await;
        fs::remove_file(&other).unwrap();
        fs::create_dir(&other).unwrap();
        both_refuse(&pair, &config, &[], "guest", &["it is not a file"]).await;
        fs::remove_dir(&other).unwrap();
        symlink(&other, &other).unwrap();
        both_refuse(&pair, &config, &[], "guest", &["Too many levels of symbolic links"]).await;
        let initrd = pair.config(&[("[net]", "initrd = \"/bin/ls\"\n[net]")]);
        both_refuse(&pair, &initrd, &[], "guest", &["it takes no initrd"]).await;
    });
}

#[test]
fn an_image_that_is_not_raw_is_no_disk() {
    with_hosts(async |pair| {
        let disk = pair.folder.path().join("disk.img");
        let config =
            format!("{}\n[[disk]]\npath = {:?}\nreadonly = true\n", alone(&pair), path(&disk));
        let mut image = vec![0; 1 << 16];
        for (at, magic, format) in [
            (0, &b"QFI\xfb\0\0\0\x03"[..], "qcow2"),
            (0, b"KDMV", "vmdk"),
            (64, b"\x7f\x10\xda\xbe", "vdi"),
            (0, b"vhdxfile", "vhdx"),
        ] {
            image.fill(0);
            image[at..at + magic.len()].copy_from_slice(magic);
            fs::write(&disk, &image).unwrap();
            let convert = format!("qemu-img convert -f {format} -O raw ");
            both_refuse(&pair, &config, &[], "disk", &[&convert]).await;
        }
        image[..9].copy_from_slice(b"LUKS\xba\xbe\0\x02\0");
        fs::write(&disk, &image).unwrap();
        assert!(preflight(&pair, &config, &[]).await.iter().all(|(name, ..)| name != "disk"));
        image[..2].copy_from_slice(&[0x1f, 0x8b]);
        fs::write(&disk, &image).unwrap();
        let said = preflight(&pair, &config, &[]).await;
        let warned = said.iter().find(|(name, ..)| name == "disk").unwrap();
        assert_eq!(warned.1, "warning");
        assert!(warned.2.contains("begins like a file compressed by gzip"), "{}", warned.2);
        backup_refuses(&pair, &["--disks", "/nonexistent"], "disks", &["No such file"]).await;
        backup_refuses(&pair, &["--disks", "srv"], "disks", &["not an absolute path"]).await;
    });
}

/// A memory cgroup of its own (version 1).
struct Cgroup {
    directory: PathBuf,
    /// A shell's words that put it there, and run what follows.
    enter: String,
    /// Removes the directory once this test has gone, in whatever way.
    remover: Child,
}

impl Cgroup {
    /// The hierarchy is mounted below `folder`, in a mount namespace of the calling thread.
    fn new(folder: &Path, limit_mib: u64) -> Self {
        let root = folder.join("cgroup");
        fs::create_dir(&root).unwrap();
        // SAFETY: moves this thread alone, which ends with its test.
        assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNS) }, 0);
        let mount = "mount --make-rprivate / && exec mount -t cgroup -o memory none \"$0\"";
        let mounted = Command::new("sh").args(["-c", mount]).arg(&root).status().unwrap();
        assert!(mounted.success(), "a memory cgroup hierarchy of version 1 can be mounted");
        let directory = root.join(format!("remus-test-{}", std::process::id()));
        fs::create_dir(&directory).unwrap();
        let remove = "cat; for n in $(seq 200); do rmdir \"$0\" && exit; sleep 0.05; done";
        let remover = Command::new("setsid")
            .args(["sh", "-c", remove])
            .arg(&directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        fs::write(directory.join("memory.limit_in_bytes"), (limit_mib << 20).to_string()).unwrap();
        // Hosts have mount namespaces of their own, and do not see this one's.
        // SAFETY: takes nothing and cannot fail.
        let (process, thread) = (std::process::id(), unsafe { libc::gettid() });
        let seen = format!("/proc/{process}/task/{thread}/root{}", directory.display());
        let enter = format!("echo $$ > {seen}/cgroup.procs && exec \"$@\"");
        Self { directory, enter, remover }
    }

    fn words(&self) -> [&str; 4] {
        ["sh", "-c", &self.enter, "sh"]
    }

    fn limit(&self, mib: u64) {
        fs::write(self.directory.join("memory.limit_in_bytes"), (mib << 20).to_string()).unwrap();
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        drop(self.remover.stdin.take());
        self.remover.wait().ok();
    }
}

#[test]
fn memory_that_a_limit_keeps_from_the_vm_is_not_there() {
    with_hosts(async |pair| {
        let config = alone(&pair);
        let words = ["256 MiB of RAM and 115 MiB besides", "the memory limit of the cgroup /"];
        let cgroup = Cgroup::new(pair.folder.path(), 300);
        both_refuse(&pair, &config, &cgroup.words(), "memory", &words).await;
        cgroup.limit(2048);
        let said = preflight(&pair, &config, &cgroup.words()).await;
        assert!(said.iter().all(|(name, ..)| name != "memory"), "{said:?}");
        // Of the ancestors too.
        let inner = cgroup.directory.join("inner");
        fs::create_dir(&inner).unwrap();
        cgroup.limit(300);
        let enter = cgroup.enter.replace("/cgroup.procs", "/inner/cgroup.procs");
        let before = ["sh", "-c", &enter, "sh"];
        both_refuse(&pair, &config, &before, "memory", &words).await;
        fs::remove_dir(&inner).unwrap();

        let limited = ["sh", "-c", "ulimit -v 300000; exec \"$@\"", "sh"];
        both_refuse(&pair, &config, &limited, "memory", &["ulimit -v leaves "]).await;
        let limited = ["sh", "-c", "ulimit -d 300000; exec \"$@\"", "sh"];
        both_refuse(&pair, &config, &limited, "memory", &["ulimit -d leaves "]).await;
        let large = pair.config(&[("memory_mib = 256", "memory_mib = 65536")]);
        both_refuse(&pair, &large, &[], "memory", &["this host leaves "]).await;
    });
}

#[test]
fn a_backup_admits_no_vm_for_which_its_cgroup_has_no_room() {
    with_hosts(async |pair| {
        let cgroup = Cgroup::new(pair.folder.path(), 300);
        let mut backup = pair.start_backup_behind(&cgroup.words());
        let mut primary = pair.start_primary(&[]);
        let words = "the VM wants 256 MiB, and this host has ";
        let status = says(&mut primary, Protection::Unprotected, words).await;
        assert!(status.reason.contains("the memory limit of the cgroup"), "{}", status.reason);
        backup.still_runs().unwrap();
        // The primary asks again: there is room as soon as the limit is raised.
        cgroup.limit(2048);
        primary.wait_for(Protection::Protected, patience()).await.unwrap();
    });
}

#[test]
fn a_lease_shorter_than_two_heartbeats_is_a_mistake_of_the_config() {
    with_hosts(async |pair| {
        let config = pair.config(&[("heartbeat_ms = 10", "heartbeat_ms = 33")]);
        let file = write_config(&pair, &config);
        for verb in ["preflight", "run"] {
            let (code, said) = pair.remus(&pair.topology.primary, &[], &[verb, path(&file)]).await;
            assert_eq!(code, CONFIG, "{said}");
            for word in
                ["protection.lease_ms: 60 ms", "heartbeat_ms = 33", "heartbeat_ms = 30 or less"]
            {
                assert!(said.contains(word), "no {word:?} in: {said}");
            }
        }
    });
}

#[test]
fn more_vcpus_than_kvm_has_and_a_kernel_larger_than_ram_are_found_beforehand() {
    with_hosts(async |pair| {
        let small = pair.config(&[("memory_mib = 256", "memory_mib = 16")]);
        let backup = pair.start_backup();
        both_pass(&pair, &small, Protection::Protected).await;
        drop(backup);
        // The demo guest's file, with a segment that reaches up to a gigabyte.
        let guest = pair.programs.guest.clone();
        let mut large = fs::read(&guest).unwrap();
        let headers =
            usize::try_from(u64::from_le_bytes(large[32..40].try_into().unwrap())).unwrap();
        let count = usize::from(u16::from_le_bytes(large[56..58].try_into().unwrap()));
        let is_load = |n: &usize| large[headers + n * 56..][..4] == [1, 0, 0, 0];
        let last = (0..count).rfind(is_load).unwrap();
        let memory = headers + last * 56 + 40;
        large[memory..memory + 8].copy_from_slice(&(1_u64 << 30).to_le_bytes());
        let file = pair.folder.path().join("large");
        fs::write(&file, large).unwrap();
        let config = pair.config(&[(path(&guest), path(&file))]);
        let words = ["it needs RAM up to 1026 MiB", "machine.memory_mib"];
        both_refuse(&pair, &config, &[], "guest", &words).await;
        assert!(!primary_run_dir(pair.folder.path()).join(TAP).exists());
    });
}
