//! The examples of `docs/training.md`.

use tapestry_train::{Stage, TrainJob};

#[test]
fn every_job_in_the_documentation_is_one() {
    let page = include_str!("../../../docs/training.md");
    let blocks: Vec<&str> = page.split("```json\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    assert_eq!(blocks.len(), 3);
    for (block, stage) in blocks.iter().zip([Stage::Cpt, Stage::Sft, Stage::Preference]) {
        let job: TrainJob = serde_json::from_str(block).expect("a job");
        job.check().expect("possible settings");
        job.check_stage(stage).expect("of its stage");
    }
}
