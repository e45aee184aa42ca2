//! What `/metrics` says of a node.

use crate::home::Home;
use crate::metrics::{Exposition, Kind, Source, number};
use crate::observe::Observer;
use crate::progress::Reporter;
use std::sync::Arc;
use tapestry_net::Dialer;

/// Makes the document of metrics whenever it is asked for.
pub(super) fn source(home: &Home, observer: Arc<Observer>, dialer: Dialer, reporter: Reporter) -> Source {
    let home = home.clone();
    Arc::new(move || {
        let mut metrics = Exposition::default();
        metrics.process("node", &home.blobs_dir());
        metrics.observed(&observer);
        let entries = std::fs::read_dir(home.log_dir()).map_or(0, |entries| entries.flatten().count() as u64);
        metrics.value("tapestry_log_entries", Kind::Gauge, "Entries of the role's log.", number(entries));
        let (sent, received) = dialer.bytes_moved();
        metrics.value(
            "tapestry_sent_bytes_total",
            Kind::Counter,
            "Bytes on the wire to the coordinator, TLS and HTTP included.",
            number(sent),
        );
        metrics.value(
            "tapestry_received_bytes_total",
            Kind::Counter,
            "Bytes on the wire from the coordinator, TLS and HTTP included.",
            number(received),
        );
        if let Some(step) = reporter.latest().filter(|step| !step.is_end && step.what != "note") {
            let labels = [("step", step.what.as_str()), ("unit", step.unit.as_str())];
            metrics.family(
                "tapestry_step_done",
                Kind::Gauge,
                "How much of the step under way is done.",
                [(&labels[..], number(step.done))],
            );
            metrics.family(
                "tapestry_step_size",
                Kind::Gauge,
                "How much the step under way has in all; 0 where that is not known.",
                [(&labels[..], number(step.total))],
            );
        }
        metrics.into_text()
    })
}
