//! br_netfilter's switches: whether the IP layer's rules see what a bridge forwards. They belong to the network
//! namespace, not to a bridge.
//!
//! What was off is turned on, and off again with the gate; what was on stays. A gate that dies leaves them on: its rules
//! are still there, and need them. While a switch is off, stamped frames are dropped where they would leave the bridge.

use std::fs;

use anyhow::{Context, Result, ensure};

const PATHS: [&str; 2] = [
    "/proc/sys/net/bridge/bridge-nf-call-iptables",
    "/proc/sys/net/bridge/bridge-nf-call-ip6tables",
];

pub(super) struct Switches {
    /// Those that were off.
    turned: Vec<&'static str>,
}

impl Switches {
    /// Comes after the rules, which bring br_netfilter with them.
    pub(super) fn turn_on() -> Result<Self> {
        let mut turned = Vec::new();
        for path in PATHS {
            if !is_on(path)? {
                fs::write(path, "1").with_context(|| format!("turn {path} on"))?;
                turned.push(path);
            }
        }
        Ok(Self { turned })
    }

    pub(super) fn verify(&self) -> Result<()> {
        for path in PATHS {
            ensure!(
                is_on(path)?,
                "{path} was turned off: frames of this gate are dropped on a bridge"
            );
        }
        Ok(())
    }

    /// Another gate in this namespace that still needs them finds out at its next look.
    pub(super) fn restore(self) -> Result<()> {
        for path in self.turned {
            fs::write(path, "0").with_context(|| format!("turn {path} off again"))?;
        }
        Ok(())
    }
}

fn is_on(path: &str) -> Result<bool> {
    let text = fs::read_to_string(path)
        .with_context(|| format!("read {path} (is br_netfilter there? modprobe br_netfilter)"))?;
    Ok(text.trim() != "0")
}
