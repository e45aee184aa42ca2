//! Merges by a recipe.
#![allow(clippy::print_stdout, clippy::unwrap_used, missing_docs, reason = "temporary")]
use std::sync::atomic::AtomicBool;
use tapestry_engine::*;
fn main() {
    let a: Vec<String> = std::env::args().collect();
    let threads: usize = a[2].parse().unwrap();
    rayon::ThreadPoolBuilder::new().num_threads(threads).build_global().unwrap();
    let recipe = Recipe::read(a[1].as_ref()).unwrap();
    let sync_every: u64 = a.get(3).map_or(1 << 40, |s| s.parse::<u64>().unwrap() << 20);
    let t = std::time::Instant::now();
    let r = merge_folders(&recipe, &Running { stop: &AtomicBool::new(false), sync_every, progress: &|_, _| {} });
    println!("{:?} {:?}", t.elapsed(), r.map(|r| r.weights));
    let s = std::fs::read_to_string("/proc/self/status").unwrap();
    println!("{}", s.lines().find(|l| l.starts_with("VmHWM")).unwrap());
}
