//! Which engines of the gate work on this host.

use super::Check;
use crate::gate::{Engine, queue_support};

/// Checks which engines work here. `wanted` is the engine of the config, where there is a config.
pub(super) fn check(wanted: Option<Engine>) -> Check {
    const NAME: &str = "engines";
    match (queue_support(), wanted) {
        (Ok(support), _) => {
            let by = if support.own_statement { "nf_tables' queue" } else { "the NFQUEUE target" };
            let safe = if support.owned_tables {
                ""
            } else {
                ", whose rules a flush of nf_tables would remove"
            };
            Check::ok(NAME, format!("bpf, and nfqueue by {by}{safe}"))
        }
        (Err(e), Some(Engine::NfQueue)) => Check::refused(
            NAME,
            format!("nfqueue does not work here: {e:#}"),
            "use gate.engine = \"bpf\", or a kernel and rules that allow nfqueue",
        ),
        (Err(e), Some(Engine::Bpf) | None) => {
            Check::ok(NAME, format!("bpf, but not nfqueue: {e:#}"))
        }
    }
}
