//! What an operator sees of running roles from outside: metrics, logs, traces, costs; and that nothing leaves the machine unasked.
#![expect(clippy::unwrap_used, reason = "a test")]

mod common;

use common::{Process, Workshop, free_port};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const MEMBERS: [&str; 2] = ["france", "china"];
const PATIENCE: Duration = Duration::from_secs(240);

/// Two members that are to have one round.
fn workshop() -> (Workshop, String) {
    let workshop = Workshop::new();
    workshop.make_nodes(&MEMBERS);
    for name in MEMBERS {
        workshop.shorten_training(&format!("{name}-node"));
    }
    workshop.shell(
        "tapestry charter draft --home coordinator --consortium Two --rounds 1 --member france=$(cat france.key) \
         --member china=$(cat china.key) --base base --open-text open.txt --open-text-max-tokens 600 \
         --max-relative-change 10 --max-contribution-rise 10 --max-merged-rise 10
         for name in france china; do tapestry charter sign charter.json --home $name-node --yes; done
         tapestry charter publish charter.json --home coordinator",
    );
    (workshop, format!("127.0.0.1:{}", free_port()))
}

fn join(workshop: &Workshop, address: &str) {
    workshop.wait_for("the coordinator listens", || workshop.path("coordinator/address").exists());
    workshop.shell(&format!(
        "for name in france china; do tapestry node join \"https://{address}#$(cat coordinator/key.pub)\" --home $name-node; done"
    ));
}

/// A collector of OpenTelemetry, as small as one can be: it keeps the spans that it is sent, with their service.
struct Collector {
    address: String,
    spans: Arc<Mutex<Vec<(String, Value)>>>,
}

impl Collector {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let spans = Arc::new(Mutex::new(vec![]));
        let kept = Arc::clone(&spans);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                kept.lock().unwrap().extend(take_request(stream.unwrap()));
            }
        });
        Self { address, spans }
    }
}

fn take_request(mut stream: TcpStream) -> Vec<(String, Value)> {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        assert!(reader.read_line(&mut head).unwrap() > 0, "a request without an end: {head}");
    }
    assert!(head.starts_with("POST /v1/traces HTTP/1.1\r\n"), "{head}");
    let head = head.to_ascii_lowercase();
    assert!(head.contains("\r\ncontent-type: application/json\r\n") && head.contains("\r\nx-team: loom\r\n"), "{head}");
    let length = head.split("\r\ncontent-length: ").nth(1).unwrap().split("\r\n").next().unwrap();
    let mut body = vec![0; length.parse().unwrap()];
    reader.read_exact(&mut body).unwrap();
    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}").unwrap();
    let body: Value = serde_json::from_slice(&body).unwrap();
    let [resource] = &body["resourceSpans"].as_array().unwrap()[..] else { panic!("{body}") };
    let service = resource["resource"]["attributes"][0]["value"]["stringValue"].as_str().unwrap();
    let spans = resource["scopeSpans"][0]["spans"].as_array().unwrap();
    spans.iter().map(|span| (service.to_owned(), span.clone())).collect()
}

/// A document of metrics, or nothing where nobody listens.
fn scrape(address: &str) -> Option<BTreeMap<String, f64>> {
    let mut stream = TcpStream::connect(address).ok()?;
    write!(stream, "GET /metrics HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    assert!(head.starts_with("HTTP/1.1 200 OK") && head.contains("content-type: text/plain; version=0.0.4"), "{head}");
    Some(parse(body))
}

/// The text format of Prometheus, read strictly: samples by name and labels, as they are written.
fn parse(text: &str) -> BTreeMap<String, f64> {
    assert!(text.ends_with('\n'), "the last line has no end");
    let is_name = |name: &str| {
        name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
    };
    let (mut samples, mut families, mut helped, mut family) = (BTreeMap::new(), BTreeSet::new(), "", ("", ""));
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').unwrap();
            assert!(is_name(name) && !help.is_empty(), "{line}");
            helped = name;
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            family = rest.split_once(' ').unwrap();
            assert_eq!(helped, family.0, "{line}");
            assert!(["counter", "gauge"].contains(&family.1) && families.insert(family.0), "{line}");
            assert_eq!(family.1 == "counter", family.0.ends_with("_total"), "{line}");
        } else {
            let (sample, value) = line.rsplit_once(' ').unwrap();
            let (name, labels) = sample.split_once('{').map_or((sample, None), |(name, rest)| (name, Some(rest)));
            assert_eq!(name, family.0, "a sample outside of its family: {line}");
            if let Some(labels) = labels {
                for label in labels.strip_suffix("\"}").unwrap().split("\",") {
                    let (label, value) = label.split_once("=\"").unwrap();
                    assert!(is_name(label) && !value.contains(['"', '\\']), "{line}");
                }
            }
            let value: f64 = value.parse().unwrap();
            assert!(value >= 0.0 && samples.insert(sample.to_owned(), value).is_none(), "{line}");
        }
    }
    samples
}

fn json_lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}

#[test]
fn a_round_is_seen_from_outside() {
    let (workshop, address) = workshop();
    let collector = Collector::start();
    let environment = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", collector.address.as_str()),
        ("OTEL_EXPORTER_OTLP_HEADERS", "x-team=loom"),
        ("TAPESTRY_LOG_FORMAT", "json"),
    ];
    let (of_coordinator, of_node) = (format!("127.0.0.1:{}", free_port()), format!("127.0.0.1:{}", free_port()));
    let run = format!("tapestry coordinator run --home coordinator --listen {address} --metrics {of_coordinator}");
    let mut coordinator = workshop.start_with(&run, &environment);
    join(&workshop, &address);
    let early = scrape(&of_coordinator).unwrap();
    assert_eq!(early.get("tapestry_rounds_total{result=\"published\"}"), Some(&0.0));
    let mut nodes = MEMBERS.map(|name| {
        let metrics = if name == "france" { format!(" --metrics {of_node}") } else { String::new() };
        workshop.start_with(&format!("tapestry node run --home {name}-node{metrics}"), &environment)
    });
    workshop.wait_for("a node shows what it receives", || {
        scrape(&of_node)
            .is_some_and(|seen| seen.get("tapestry_received_bytes_total").is_some_and(|bytes| *bytes > 1000.0))
    });
    for node in &mut nodes {
        node.wait_for_success(PATIENCE);
    }

    let seen = scrape(&of_coordinator).unwrap();
    let expected = [
        ("tapestry_rounds_total{result=\"published\"}", 1.0),
        ("tapestry_rounds_total{result=\"abandoned\"}", 0.0),
        ("tapestry_verdicts_total{verdict=\"accepted\"}", 2.0),
        ("tapestry_round", 0.0),
        ("tapestry_round_phase{phase=\"none\"}", 1.0),
        ("tapestry_events_total{event=\"contribution_received\"}", 2.0),
        ("tapestry_work_total{work=\"screen\"}", 2.0),
        ("tapestry_work_total{work=\"merge\"}", 1.0),
        ("tapestry_work_total{work=\"gate\"}", 1.0),
    ];
    for (sample, value) in expected {
        assert_eq!(seen.get(sample), Some(&value), "{sample} in {seen:#?}");
    }
    let base = std::fs::metadata(workshop.path("base/model.safetensors")).unwrap().len();
    for name in MEMBERS {
        let moved = |direction: &str| seen[&format!("tapestry_member_{direction}_bytes_total{{member=\"{name}\"}}")];
        assert!(moved("sent") > 1000.0 && moved("received") > base as f64 / 4.0, "{name}, {base}: {seen:#?}");
    }
    for positive in ["process_resident_memory_bytes", "process_cpu_seconds_total", "tapestry_store_free_bytes"] {
        assert!(seen[positive] > 0.0, "{positive}");
    }
    coordinator.stop();

    check_logs(&workshop, &coordinator, &nodes);
    check_spans(&collector.spans.lock().unwrap());
    check_costs(&workshop, base);
}

/// Each line is an object that says what it is about, and none tells a secret or a text.
fn check_logs(workshop: &Workshop, coordinator: &Process, nodes: &[Process]) {
    let lines = json_lines(&coordinator.messages());
    let is_accepted = |line: &Value| {
        line["event"] == "contribution_screened"
            && line["round"] == 1
            && line["member"] == "china"
            && line["phase"] == "collecting"
    };
    assert_eq!(lines.iter().filter(|line| is_accepted(line)).count(), 1, "{lines:#?}");
    assert!(lines.iter().all(|line| line["timestamp"].is_string() && line["level"].is_string()), "{lines:#?}");
    assert!(lines.iter().any(|line| line["step"] == "merge" && line["is_end"] == true), "{lines:#?}");
    let of_france = json_lines(&nodes[0].messages());
    assert!(
        of_france.iter().any(|line| line["event"] == "trained" && line["member"] == "france" && line["round"] == 1)
    );
    let all = [coordinator.messages(), nodes[0].messages(), nodes[1].messages()].concat();
    for home in ["coordinator", "france-node", "china-node"] {
        let pem = std::fs::read_to_string(workshop.path(home).join("key.pem")).unwrap();
        let secret = pem.lines().nth(1).unwrap();
        assert!(secret.len() > 40 && !all.contains(secret), "{home}");
    }
    for name in MEMBERS {
        let text = std::fs::read_to_string(workshop.path(name).join("contributed.txt")).unwrap();
        let sentence: String = text.chars().take(30).collect();
        assert!(!all.contains(&sentence), "{name}");
    }
}

/// The parts of the round, from three processes, are one trace.
fn check_spans(spans: &[(String, Value)]) {
    let name = |span: &Value| span["name"].as_str().unwrap().to_owned();
    let roots: Vec<_> = spans.iter().filter(|(_, span)| name(span) == "round").collect();
    let [(service, root)] = &roots[..] else { panic!("{spans:#?}") };
    assert_eq!((service.as_str(), &root["status"]["code"]), ("tapestry-coordinator", &Value::from(1)));
    let of_round: Vec<_> = spans.iter().filter(|(_, span)| span["traceId"] == root["traceId"]).collect();
    let mut counts: BTreeMap<(String, String), usize> = BTreeMap::new();
    let time = |span: &Value, key: &str| span[key].as_str().unwrap().parse::<u64>().unwrap();
    for (service, span) in &of_round {
        *counts.entry((service.clone(), name(span))).or_default() += 1;
        assert_eq!(span["traceId"].as_str().unwrap().len(), 32);
        assert_eq!(span["spanId"].as_str().unwrap().len(), 16);
        assert!(time(span, "startTimeUnixNano") <= time(span, "endTimeUnixNano"), "{span}");
        assert!(name(span) == "round" || span["parentSpanId"] == root["spanId"], "{span}");
    }
    let expected = [
        ("coordinator", "screen", 2),
        ("coordinator", "merge", 1),
        ("coordinator", "gate", 1),
        ("node", "train", 2),
        ("node", "push", 2),
    ];
    for (role, what, num) in expected {
        let found = counts.get(&(format!("tapestry-{role}"), what.to_owned()));
        assert_eq!(found, Some(&num), "{what}: {counts:#?}");
    }
}

/// The coordinator's account and the nodes' tell the same story.
fn check_costs(workshop: &Workshop, base: u64) {
    let lines = json_lines(&workshop.shell("tapestry account --home coordinator --round 1 --json"));
    for name in MEMBERS {
        let [line] = &lines.iter().filter(|line| line["party"] == name).collect::<Vec<_>>()[..] else {
            panic!("{lines:#?}")
        };
        assert_eq!((&line["what"], &line["round"]), (&Value::from("accepted"), &Value::from(1)), "{line}");
        assert!(line["bytes_up"].as_u64().unwrap() > base / 4 && line["bytes_down"].as_u64().unwrap() > 1000, "{line}");
        assert!(line["wall_seconds"].as_f64().unwrap() > 0.0, "{line}");
        let own = json_lines(&workshop.shell(&format!("tapestry account --home {name}-node --round 1 --json")));
        let [train] = &own.iter().filter(|line| line["what"] == "train").collect::<Vec<_>>()[..] else {
            panic!("{own:#?}")
        };
        assert_eq!(train["party"], name);
        for cost in ["tokens", "compute_seconds", "wall_seconds"] {
            assert_eq!(train[cost], line[cost], "{cost} of {name}");
        }
        assert!(own.iter().any(|line| line["what"] == "push" && line["bytes_up"].as_u64() > Some(0)), "{own:#?}");
    }
    let work: BTreeMap<_, _> = lines
        .iter()
        .filter(|line| line["party"] == "coordinator")
        .map(|line| (line["what"].as_str().unwrap(), line))
        .collect();
    assert_eq!(work.keys().copied().collect::<Vec<_>>(), ["gate", "merge", "screen"]);
    assert!(work["merge"]["wall_seconds"].as_f64().unwrap() > 0.0);
    let csv = workshop.shell("tapestry account --home coordinator --csv");
    let mut rows = csv.split("\r\n");
    let header = rows.next().unwrap();
    assert!(header.starts_with("round,party,what,bytes_up,bytes_down,tokens,"), "{header}");
    let columns = header.matches(',').count();
    assert!(rows.by_ref().take_while(|row| !row.is_empty()).all(|row| row.matches(',').count() == columns), "{csv}");
    assert!(workshop.shell("tapestry account --home coordinator").contains("accepted"));
    workshop.refused("tapestry account --home nowhere", "nowhere");
}

#[test]
fn metrics_that_cannot_be_served_and_traces_that_cannot_be_sent_are_said_at_the_start() {
    let (workshop, address) = workshop();
    let run = format!("tapestry coordinator run --home coordinator --listen {address}");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let metrics = taken.local_addr().unwrap();
    workshop.refused(&format!("{run} --metrics {metrics}"), "cannot serve metrics on");
    workshop.refused(&format!("OTEL_EXPORTER_OTLP_ENDPOINT=https://collector:4318 {run}"), "http://HOST:4318");
}

/// The TCP sockets that a process holds: local port, remote port (0 of one that listens).
#[cfg(target_os = "linux")]
fn sockets(process: u32) -> Vec<(u16, u16)> {
    let inodes: BTreeSet<String> = std::fs::read_dir(format!("/proc/{process}/fd"))
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let target = std::fs::read_link(entry.path()).ok()?;
            Some(target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned())
        })
        .collect();
    let mut found = vec![];
    for table in ["tcp", "tcp6", "udp", "udp6"] {
        let text = std::fs::read_to_string(format!("/proc/{process}/net/{table}")).unwrap_or_default();
        for line in text.lines().skip(1) {
            let fields: Vec<_> = line.split_whitespace().collect();
            let port = |field: &str| u16::from_str_radix(field.rsplit_once(':').unwrap().1, 16).unwrap();
            if inodes.contains(fields[9]) {
                found.push((port(fields[1]), port(fields[2])));
            }
        }
    }
    found
}

#[cfg(target_os = "linux")]
#[test]
fn nothing_leaves_the_machine_unasked() {
    let (workshop, address) = workshop();
    let port: u16 = address.rsplit_once(':').unwrap().1.parse().unwrap();
    let mut coordinator = workshop.start(&format!("tapestry coordinator run --home coordinator --listen {address}"));
    join(&workshop, &address);
    let mut nodes = MEMBERS.map(|name| workshop.start(&format!("tapestry node run --home {name}-node")));
    let (mut num_listening, mut num_dialled) = (0, 0);
    while !nodes.iter_mut().all(Process::has_ended) {
        for (local, remote) in sockets(coordinator.id()) {
            assert_eq!(local, port, "the coordinator only listens at its address; remote port {remote}");
            num_listening += usize::from(remote == 0);
        }
        for (local, remote) in nodes.iter().flat_map(|node| sockets(node.id())) {
            assert_eq!(remote, port, "a node only dials its coordinator; local port {local}");
            num_dialled += 1;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    for node in &mut nodes {
        node.wait_for_success(PATIENCE);
    }
    assert!(num_listening > 0 && num_dialled > 0, "the sockets were looked at");
    coordinator.stop();
}
