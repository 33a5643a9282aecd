//! One test for each kind of mistake, with the whole message: these texts are what people meet first.

use proptest::prelude::*;

use super::*;
use crate::{
    gate::{Engine, Release, Settings},
    wire::Timing,
};

const GOOD: &str = r#"name = "demo"

[machine]
memory_mib = 256
kernel = "guest.elf"

[net]
tap = "tap0"
mac = "52:54:00:77:00:0a"

[protection]
backup = "10.99.0.2:7000"
"#;

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(Path::new("/etc/remus/demo.toml"), text)
}

/// Returns the message for the good config with `from` replaced.
fn message(from: &str, to: &str) -> String {
    assert_eq!(GOOD.matches(from).count(), 1, "{from:?}");
    let error = parse(&GOOD.replace(from, to)).expect_err(to);
    error.to_string().replace("/etc/remus/", "")
}

#[test]
fn what_is_left_out_has_its_documented_default() {
    let c = parse(GOOD).unwrap();
    assert_eq!(c.run_dir, Path::new("/run/remus"));
    assert_eq!(c.state_dir, Path::new("/var/lib/remus"));
    assert_eq!(c.machine.kernel, Path::new("/etc/remus/guest.elf"), "beside the config");
    assert_eq!((c.machine.vcpus, c.machine.cmdline.as_str()), (1, ""));
    assert_eq!((c.net.bridge, c.net.mtu_bytes), (None, 1500));
    let p = &c.protection;
    assert_eq!((p.start, p.depth), (Start::Protected, 2));
    assert_eq!(p.encoding, EncoderSettings::default());
    let ms = [p.tempo.epoch_max, p.heartbeat, p.detect, p.lease].map(|d| d.as_millis());
    assert_eq!(ms, [25, 10, 100, 60]);
    assert_eq!(c.gate, Settings::default());
    assert_eq!(c.placement, Placement::default());
}

#[test]
fn the_example_is_good_and_shows_every_key_at_its_default() {
    let example = parse(EXAMPLE).unwrap();
    // A commented key line reads `#key = value`, without a space, so that removing the `#` is enough.
    let all: String = EXAMPLE
        .lines()
        .map(|line| match line.strip_prefix('#') {
            Some(rest) if !rest.starts_with(' ') && !rest.is_empty() => format!("{rest}\n"),
            Some(_) | None => format!("{line}\n"),
        })
        .collect();
    let shown = parse(&all).unwrap();
    // These stand for nothing unless they are written.
    let (placement, gate) = (Placement::default(), Settings::default());
    let (disks, console) = (Vec::new(), Console::default());
    let machine = Machine { initrd: None, ..shown.machine.clone() };
    assert_eq!(Config { machine, placement, gate, disks, console, ..shown }, example);
    for key in validate::keys() {
        let name = key.rsplit('.').next().unwrap();
        assert!(all.contains(&format!("\n{name} = ")), "{key}");
    }
}

#[test]
fn a_text_that_is_not_toml_says_where() {
    assert_eq!(
        message("memory_mib = 256", "memory_mib = "),
        "demo.toml:4:14: this is not TOML: string values must be quoted, expected literal string\n  help: \
         text stands in double quotes, a list in [ ], and each line has one KEY = VALUE"
    );
}

#[test]
fn a_misspelt_key_gets_the_right_one() {
    assert_eq!(
        message("memory_mib", "memory_mb"),
        "demo.toml:4:1: machine.memory_mb: there is no such key\n  help: did you mean `memory_mib`?"
    );
    assert_eq!(
        message("[net]", "[nett]"),
        "demo.toml:7:2: nett: there is no such key\n  help: did you mean `net`?"
    );
    assert_eq!(
        message("tap = ", "queues = 4\ntap = "),
        "demo.toml:8:1: net.queues: there is no such key\n  help: known in [net]: tap, bridge, mac, mtu"
    );
}

#[test]
fn devices_that_no_checkpoint_can_have_are_refused_by_name() {
    assert_eq!(
        message("[net]", "[vsock]\n[net]"),
        "demo.toml:7:2: vsock: there is no such key\n  help: vsock is not supported: its state is in the host's kernel, \
         where no checkpoint can capture it"
    );
    assert_eq!(
        message("tap = ", "vhost_net = true\ntap = "),
        "demo.toml:8:1: net.vhost_net: there is no such key\n  help: vhost is not supported: its state is in the host's \
         kernel, where no checkpoint can capture it"
    );
}

#[test]
fn a_key_in_the_wrong_section_is_sent_to_its_own() {
    assert_eq!(
        message("[net]", "lease_ms = 60\n[net]"),
        "demo.toml:7:1: machine.lease_ms: there is no such key\n  help: `lease_ms` belongs in the section \
         [protection]"
    );
}

#[test]
fn a_missing_key_or_section_is_shown_as_a_line_to_add() {
    assert_eq!(
        message("tap = \"tap0\"\n", ""),
        "demo.toml:7:2: net.tap: `tap` is missing from [net]\n  help: add: tap = \"tap0\""
    );
    assert_eq!(
        message("[protection]\nbackup = \"10.99.0.2:7000\"\n", ""),
        "demo.toml: protection: the section [protection] is missing\n  help: add: [protection]"
    );
    assert_eq!(
        message("name = \"demo\"", ""),
        "demo.toml: name: `name` is missing\n  help: add: name = \"demo\""
    );
}

#[test]
fn a_wrong_type_shows_how_the_key_is_written() {
    assert_eq!(
        message("memory_mib = 256", "memory_mib = \"256M\""),
        "demo.toml:4:14: machine.memory_mib: expected a whole number, found the text \"256M\"\n  help: write it as: \
         memory_mib = 256"
    );
}

#[test]
fn a_wrong_type_is_told_in_the_words_of_a_config() {
    assert!(
        message("\"tap0\"", "5")
            .contains("net.tap: expected a text in quotes, found the number 5\n")
    );
    assert!(
        message("= 256", "= 25.5").contains("expected a whole number, found the number 25.5\n")
    );
    assert!(message("= 256", "= [256]").contains("expected a whole number, found a list\n"));
    assert!(message("= 256", "= true").contains("expected a whole number, found true\n"));
    let with = |text: &str| parse(&format!("{GOOD}{text}\n")).unwrap_err().to_string();
    assert!(with("[placement]\nvcpu_cpus = 0").contains("expected a list, found the number 0\n"));
    assert!(
        with("[placement]\nio_cpus = [\"0\"]").contains("expected a whole number, found the text")
    );
    let disk = with("[[disk]]\npath = \"/a\"\nreadonly = \"yes\"");
    assert!(
        disk.contains("disk[0].readonly: expected true or false, found the text \"yes\"\n"),
        "{disk}"
    );
    assert!(with("gate = 5").contains("protection.gate"), "it is a key of the section above");
    let text = format!("gate = 5\n{GOOD}");
    let section = parse(&text).unwrap_err().to_string();
    assert!(section.contains("gate: expected a section, found the number 5\n"), "{section}");
}

#[test]
fn a_number_out_of_range_shows_the_range() {
    assert_eq!(
        message("memory_mib = 256", "memory_mib = 8"),
        "demo.toml:4:14: machine.memory_mib: 8 is out of range\n  help: from 16 to 65536"
    );
    assert_eq!(
        message("memory_mib = 256", "memory_mib = 257"),
        "demo.toml:4:14: machine.memory_mib: 257 is odd\n  help: memory is made of pages of 2 MiB: write 258"
    );
    assert!(message("memory_mib = 256", "memory_mib = -1").contains("-1 is out of range"));
    assert!(
        message("backup = ", "[gate]\nbuffer_mib = 8\n[protection]\nbackup = ")
            .contains("duplicate"),
        "a section stands once"
    );
}

#[test]
fn a_trigger_that_nobody_knows_is_refused_and_the_controller_is_the_default() {
    let with = |gate: &str| parse(&format!("{GOOD}[gate]\n{gate}\n"));
    assert_eq!(with("").unwrap().trigger, ReleaseTrigger::Controller);
    let kernel = with("release = { trigger = \"kernel\" }").unwrap();
    assert_eq!(kernel.trigger, ReleaseTrigger::Kernel);
    let error = with("release = { trigger = \"both\" }").unwrap_err();
    assert_eq!((error.key.as_str(), error.at), ("gate.release.trigger", Some((14, 23))));
}

#[test]
fn the_buffer_is_a_power_of_two() {
    let text = format!("{GOOD}[gate]\nbuffer_mib = 100\n");
    assert_eq!(
        parse(&text).unwrap_err().to_string(),
        "/etc/remus/demo.toml:14:14: gate.buffer_mib: 100 is not a power of two\n  help: nearest: 64 or 128"
    );
}

#[test]
fn frames_leave_by_the_uplink_that_is_named() {
    let text = format!("{GOOD}[gate]\nrelease = {{ uplink = \"eth0\" }}\n");
    let uplink = LinkName::new("eth0").unwrap();
    assert_eq!(parse(&text).unwrap().gate.release, Release::Uplink(uplink));
    let error = parse(&text.replace("eth0", "eth/0")).unwrap_err().to_string();
    assert!(error.contains("gate.release.uplink"), "{error}");
    let error = parse(&text.replace("uplink", "uplinc")).unwrap_err().to_string();
    assert!(error.contains("uplink"), "{error}");
}

#[test]
fn the_engine_is_one_that_there_is_and_goes_with_the_release() {
    let engine = |text: &str| parse(&format!("{GOOD}[gate]\n{text}\n")).map(|c| c.gate.engine);
    assert_eq!(engine("engine = \"nfqueue\"").unwrap(), Engine::NfQueue);
    let error = engine("engine = \"plug\"").unwrap_err().to_string();
    assert!(error.contains("gate.engine: unknown engine \"plug\""), "{error}");
    let both = "engine = \"nfqueue\"\nrelease = { uplink = \"eth0\" }";
    let error = engine(both).unwrap_err().to_string();
    assert!(error.contains("not by an uplink"), "{error}");
}

#[test]
fn a_lease_that_outlives_the_detector_is_refused() {
    assert_eq!(
        message("backup = ", "lease_ms = 90\nbackup = "),
        "demo.toml:12:12: protection.lease_ms: 90 ms is too long for detect_ms = 100\n  help: the old primary \
         must be mute 20 ms before its backup speaks: use lease_ms = 80 or less, or detect_ms = 110 or more"
    );
    // The relation is judged with defaults too; then there is no line of its own to point at.
    assert!(
        message("backup = ", "detect_ms = 70\nbackup = ").contains("lease_ms = 50 or less"),
        "the default lease of 60 does not fit"
    );
}

#[test]
fn detection_takes_three_heartbeats() {
    assert_eq!(
        message("backup = ", "heartbeat_ms = 50\nbackup = "),
        "demo.toml:11:2: protection.detect_ms: 100 ms is less than three heartbeats of 50 ms\n  help: one late \
         heartbeat must not cause a takeover: use detect_ms = 150 or more, or a shorter heartbeat_ms"
    );
}

#[test]
fn a_lease_is_at_least_two_heartbeats_long() {
    assert_eq!(
        message("backup = ", "heartbeat_ms = 33\nbackup = "),
        "demo.toml:11:2: protection.lease_ms: 60 ms is less than two heartbeats: heartbeat_ms = 33\n  help: one lost answer \
         must not end the lease, or replies wait: use heartbeat_ms = 30 or less, or lease_ms = 66 or more"
    );
    let with = |line: &str| parse(&GOOD.replace("backup = ", &format!("{line}\nbackup = ")));
    assert!(with("heartbeat_ms = 33\nlease_ms = 66").is_ok());
    assert!(with("lease_ms = 19").unwrap_err().to_string().contains("heartbeat_ms = 9 or less"));
}

/// Whatever a config may say of its times, the wire takes: a backup checks them again, and refuses what it does not
/// like for ever.
#[test]
fn times_that_a_config_may_have_are_times_that_a_backup_takes() {
    for heartbeat in [1_u64, 5, 10, 29, 30, 31, 33, 34, 500, 1000] {
        for detect in [30_u64, 60, 100, 150, 3000, 60_000] {
            for lease in [5_u64, 10, 60, 80, 130, 2980, 59_980] {
                let times = format!(
                    "heartbeat_ms = {heartbeat}\ndetect_ms = {detect}\nlease_ms = {lease}\n"
                );
                let Ok(config) = parse(&format!("{GOOD}{times}")) else { continue };
                let Protection { heartbeat, detect, lease, tempo, .. } = config.protection;
                let epoch_max = tempo.epoch_max;
                let timing = Timing { epoch_max, heartbeat, detect, lease, margin: LEASE_MARGIN };
                assert_eq!(timing.check(), Ok(()), "{times}");
            }
        }
    }
}

#[test]
fn the_cache_of_deltas_is_counted_in_pages_and_bounded() {
    let with = |line: &str| parse(&format!("{GOOD}{line}\n")).map(|c| c.protection.encoding);
    assert_eq!(with("delta_cache_mib = 2").unwrap().copies, 512);
    assert_eq!(
        with("delta_cache_mib = 1").unwrap_err().to_string(),
        "/etc/remus/demo.toml:13:19: protection.delta_cache_mib: 1 is out of range\n  help: from 2 to 65536"
    );
}

#[test]
fn names_macs_and_addresses_say_what_they_should_be() {
    assert_eq!(
        message("name = \"demo\"", "name = \"../demo\""),
        "demo.toml:1:8: name: a VM's name is 1 to 64 ASCII letters, digits, '-' or '_'\n  help: the name becomes a \
         directory: name = \"demo\""
    );
    assert_eq!(
        message("52:54:00:77:00:0a", "53:54:00:77:00:0a"),
        "demo.toml:9:7: net.mac: 53:54:00:77:00:0a is a multicast address, not a unicast address\n  help: the \
         first byte must be even, as in 52:54:00:77:00:0a"
    );
    assert_eq!(
        message("10.99.0.2:7000", "backup.lan:7000"),
        "demo.toml:12:10: protection.backup: \"backup.lan:7000\" is not IP:PORT\n  help: write an address, not a name: \
         backup = \"10.99.0.2:7000\", or \"[fd00::2]:7000\""
    );
    assert!(message("tap = \"tap0\"", "tap = \"tap0\"\nbridge = \"tap0\"").contains("cannot both"));
    let mac = |mac: &str| message("52:54:00:77:00:0a", mac);
    assert!(mac("00:00:00:00:00:00").contains("00:00:00:00:00:00 is all zeros, not a unicast"));
    assert!(mac("ff:ff:ff:ff:ff:ff").contains("is the broadcast address, not a unicast address"));
    assert!(message("10.99.0.2:7000", "0.0.0.0:7000").contains("is not a usable address"));
    assert!(message("\"tap0\"", "\"all\"").contains("net.tap: no link can be called all"));
    assert!(
        message("backup = ", "start = \"alone\"\nbackup = ").contains("unknown start \"alone\"")
    );
}

#[test]
fn disks_are_named_one_section_each_and_read_only() {
    let with = |text: &str| parse(&format!("{GOOD}{text}"));
    let says = |text: &str| with(text).unwrap_err().to_string();
    let two = "[[disk]]\npath = \"/a\"\nreadonly = true\nid = \"root\"\n[[disk]]\nreadonly = true\npath = \"/b\"\n";
    let disks = with(two).unwrap().disks;
    assert_eq!(disks[0], Disk { path: "/a".into(), id: "root".to_owned() });
    assert_eq!((disks.len(), disks[1].id.as_str()), (2, ""));
    assert_eq!(
        says(
            "[[disk]]\npath = \"/a\"\nreadonly = true\n[[disk]]\npath = \"/b\"\nreadonly = false\n"
        ),
        "/etc/remus/demo.toml:18:12: disk[1].readonly: the guest could write to this disk, and disks are not \
         replicated yet\n  help: set readonly = true. The guest can keep what it writes in its memory, which is \
         replicated (an overlay over the disk, or a RAM disk)"
    );
    assert!(says("[[disk]]\npath = \"/a\"\n").contains("disk[0].readonly: the guest could write"));
    assert!(
        says("[[disk]]\npath = \"a.img\"\nreadonly = true\n")
            .contains("14:8: disk[0].path: \"a.img\" is not")
    );
    assert!(says("[[disk]]\nreadonly = true\n").contains("`path` is missing from [[disk]]"));
    let id = "[[disk]]\npath = \"/a\"\nreadonly = true\nid = \"twenty-one characters\"\n";
    assert!(says(id).contains("use at most 20 printable ASCII characters"));
    assert!(
        says(&"[[disk]]\npath = \"/a\"\nreadonly = true\n".repeat(5))
            .contains("5 disks are too many")
    );
    assert_eq!(
        says("[[disk]]\npath = \"/a\"\nread_only = true\n"),
        "/etc/remus/demo.toml:15:1: disk[0].read_only: there is no such key\n  help: did you mean `readonly`?"
    );
    assert_eq!(
        message("tap = ", "disk = \"a.img\"\ntap = "),
        "demo.toml:8:1: net.disk: there is no such key\n  help: `disk` is a section of its own: [[disk]]"
    );
    assert!(says("[disk]\npath = \"/a\"\n").contains("write it as: [[disk]]"));
}

#[test]
fn the_consoles_log_is_a_file_by_an_absolute_path() {
    let with = |log: &str| parse(&format!("{GOOD}[console]\nlog = {log:?}\n"));
    assert_eq!(with("/a/b").unwrap().console.log.as_deref(), Some(Path::new("/a/b")));
    let error = with("b").unwrap_err();
    assert_eq!((error.key.as_str(), error.at), ("console.log", Some((14, 7))));
}

#[test]
fn cpus_are_one_for_all_or_one_each() {
    let with = |vcpu: &str| parse(&format!("{GOOD}[placement]\nvcpu_cpus = {vcpu}\n"));
    assert_eq!(with("[0]").unwrap().placement.of_vcpu(5), Some(0));
    assert!(with("[0, 1]").unwrap_err().to_string().contains("2 CPUs do not fit 1 vCPUs"));
    assert!(with("[3, 3]").unwrap_err().to_string().contains("named twice"));
}

#[test]
fn a_file_that_is_not_there_is_an_error_that_names_it() {
    let error = Config::load(Path::new("/nonexistent/x.toml")).unwrap_err().to_string();
    assert!(
        error.starts_with("/nonexistent/x.toml: cannot read this file: No such file"),
        "{error}"
    );
}

proptest! {
    #[test]
    fn whatever_a_slip_makes_of_a_config_gives_an_answer(
        at in any::<prop::sample::Index>(),
        length in 0usize..40,
        with in "[\\[\\]\"'=.,#a-z0-9\n\u{e9}-]{0,12}",
    ) {
        let mut text: Vec<char> = EXAMPLE.chars().collect();
        let from = at.index(text.len());
        let to = (from + length).min(text.len());
        text.splice(from..to, with.chars());
        let text: String = text.into_iter().collect();
        if let Err(error) = parse(&text) {
            prop_assert!(error.to_string().starts_with("/etc/remus/demo.toml:"));
        }
    }
}
