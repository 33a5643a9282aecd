//! `[[disk]]` and `[console]`.

use std::path::PathBuf;

use serde::Deserialize;

use super::Check;
use crate::{
    config::{ConfigError, Console, Disk},
    machine::{DISK_ID_MAX, DISK_PATH_MAX, DISKS_MAX},
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawDisk {
    path: Option<String>,
    readonly: Option<bool>,
    id: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawConsole {
    log: Option<String>,
}

impl Check<'_, '_> {
    pub(super) fn disks(&self, raw: &[RawDisk]) -> Result<Vec<Disk>, ConfigError> {
        if raw.len() > DISKS_MAX {
            return Err(self.wrong(
                &format!("disk[{DISKS_MAX}]"),
                format!("{} disks are too many", raw.len()),
                format!("a VM has at most {DISKS_MAX}"),
            ));
        }
        raw.iter().enumerate().map(|(n, raw)| self.disk(n, raw)).collect()
    }

    fn disk(&self, n: usize, raw: &RawDisk) -> Result<Disk, ConfigError> {
        let key = |name: &str| format!("disk[{n}].{name}");
        let Some(path) = &raw.path else {
            return Err(self.wrong(
                &key("path"),
                "`path` is missing from [[disk]]".to_owned(),
                "add: path = \"/srv/remus/root.img\"",
            ));
        };
        if !path.starts_with('/') || path.chars().any(char::is_control) {
            return Err(self.wrong(
                &key("path"),
                format!("{path:?} is not an absolute path"),
                "begin the path with a slash: the backup must find the same disk at the same path",
            ));
        }
        if path.len() > DISK_PATH_MAX {
            return Err(self.wrong(
                &key("path"),
                format!("{} bytes are too long", path.len()),
                format!("a path has at most {DISK_PATH_MAX} bytes"),
            ));
        }
        if raw.readonly != Some(true) {
            return Err(self.wrong(
                &key("readonly"),
                "the guest could write to this disk, and disks are not replicated yet".to_owned(),
                "set readonly = true. The guest can keep what it writes in its memory, which is replicated (an overlay over \
                 the disk, or a RAM disk)",
            ));
        }
        let id = raw.id.clone().unwrap_or_default();
        if id.len() > DISK_ID_MAX || !id.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(self.wrong(
                &key("id"),
                format!("{id:?} cannot be a disk's serial number"),
                format!("use at most {DISK_ID_MAX} printable ASCII characters without blanks"),
            ));
        }
        Ok(Disk { path: path.into(), id })
    }

    pub(super) fn console(&self, raw: Option<&RawConsole>) -> Result<Console, ConfigError> {
        let Some(log) = raw.and_then(|raw| raw.log.as_deref()) else {
            return Ok(Console::default());
        };
        if !log.starts_with('/') || log.contains('\0') {
            return Err(self.wrong(
                "console.log",
                format!("{log:?} is not an absolute path"),
                "begin the path with a slash: log = \"/var/log/remus/demo.console\"",
            ));
        }
        Ok(Console { log: Some(PathBuf::from(log)) })
    }
}
