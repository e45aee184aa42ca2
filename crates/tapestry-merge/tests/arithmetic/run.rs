//! A merge as the engine does it: contributions by name, what the method demands looked up first, then rows of a given length.

use std::ops::Range;
use tapestry_core::{Dtype, TensorSpec};
use tapestry_merge::{
    Block, Contributor, GRAM_BLOCK_ELEMENTS, Gram, Method, MethodError, Selection, Setting, Survey, SurveyKind,
    select_in_memory,
};

/// Name, share and tensors.
pub(crate) type Member = (String, f64, Vec<Vec<f32>>);

/// A model to merge onto: the names of its tensors, the base's values (or none), and the states from the round before.
pub(crate) struct Model<'a> {
    pub(crate) names: Vec<String>,
    pub(crate) base: &'a [Vec<f32>],
    /// For each state, its tensors. Left out, all states are zero.
    pub(crate) states: Vec<Vec<Vec<f32>>>,
}

/// What comes of it, before any rounding.
pub(crate) struct Merged {
    pub(crate) tensors: Vec<Vec<f64>>,
    /// For each state, its tensors.
    pub(crate) states: Vec<Vec<Vec<f64>>>,
}

impl<'a> Model<'a> {
    /// Tensors without names of their own and states of zeros.
    pub(crate) fn new(base: &'a [Vec<f32>], num_tensors: usize) -> Self {
        Self { names: (0..num_tensors).map(|number| format!("layer.{number}")).collect(), base, states: vec![] }
    }

    pub(crate) fn merge(&self, method: &Method, members: &[Member], row: usize) -> Result<Merged, MethodError> {
        let mut members = members.to_vec();
        members.sort_by(|a, b| a.0.cmp(&b.0));
        let equal = members.iter().all(|member| (member.1 - members[0].1).abs() < 1e-12);
        method.check_setting(members.len(), !self.base.is_empty(), equal)?;
        let demands = method.demands();
        let base = if demands.base { self.base } else { &[] };
        let rows = Rows { base, members: &members };
        let lens: Vec<usize> = members[0].2.iter().map(Vec::len).collect();
        let survey = rows.survey(demands.survey, &lens, row);

        let contributors: Vec<_> =
            members.iter().map(|(name, share, _)| Contributor { name: name.clone(), share: *share }).collect();
        let spec = |(name, len): (&String, &usize)| TensorSpec {
            name: name.clone(),
            dtype: Dtype::F32,
            shape: vec![*len as u64],
        };
        let tensors: Vec<_> = self.names.iter().zip(&lens).map(spec).collect();
        let rule = method.rule(&Setting { tensors: &tensors, contributors: &contributors }, &survey)?;
        let mut merged = Merged { tensors: vec![], states: vec![vec![]; demands.num_states] };
        for (tensor, len) in lens.iter().enumerate() {
            let mut out = vec![f64::NAN; *len];
            let zeros = vec![0.0; *len];
            let states: Vec<&[f32]> = (0..demands.num_states)
                .map(|i| self.states.get(i).map_or(&zeros[..], |state| &state[tensor]))
                .collect();
            let mut states_out = vec![vec![f64::NAN; *len]; demands.num_states];
            for range in ranges(*len, row) {
                let (base, inputs) = rows.cut(tensor, range.clone());
                let states: Vec<&[f32]> = states.iter().map(|state| &state[range.clone()]).collect();
                let block = Block { tensor, first: range.start as u64, base, inputs: &inputs, states: &states };
                let mut states_out: Vec<_> = states_out.iter_mut().map(|state| &mut state[range.clone()]).collect();
                rule.merge(&block, &mut out[range], &mut states_out);
            }
            merged.tensors.push(out);
            merged.states.iter_mut().zip(states_out).for_each(|(state, out)| state.push(out));
        }
        Ok(merged)
    }
}

struct Rows<'a> {
    base: &'a [Vec<f32>],
    members: &'a [Member],
}

impl Rows<'_> {
    fn cut(&self, tensor: usize, range: Range<usize>) -> (&[f32], Vec<&[f32]>) {
        let base = self.base.get(tensor).map_or(&[][..], |base| &base[range.clone()]);
        (base, self.members.iter().map(|(_, _, tensors)| &tensors[tensor][range.clone()]).collect())
    }

    fn survey(&self, kind: SurveyKind, lens: &[usize], row: usize) -> Survey {
        let mut survey = Survey::default();
        for (tensor, len) in lens.iter().enumerate() {
            match kind {
                SurveyKind::Nothing => {}
                SurveyKind::Grams => {
                    let mut gram = Gram::zero(self.members.len());
                    for range in ranges(*len, GRAM_BLOCK_ELEMENTS) {
                        let (base, inputs) = self.cut(tensor, range);
                        gram.add(&Gram::of_block(base, &inputs));
                    }
                    survey.grams.push(gram);
                }
                SurveyKind::Thresholds { density } => {
                    let found = |member| self.threshold(tensor, member, *len, density, row);
                    survey.thresholds.push((0..self.members.len()).map(found).collect());
                }
            }
        }
        survey
    }

    /// Found both ways, which must agree.
    fn threshold(&self, tensor: usize, member: usize, len: usize, density: f64, row: usize) -> f32 {
        let mut selection = Selection::new(len as u64, density);
        while !selection.is_done() {
            // Two threads' worth of counts, given back in the wrong order.
            let mut counts = [selection.counts(), selection.counts()];
            for (number, range) in ranges(len, row).enumerate() {
                let (base, inputs) = self.cut(tensor, range);
                counts[number % 2].add(base, inputs[member]);
            }
            counts.iter().rev().for_each(|counts| selection.absorb(counts));
            selection.end_pass();
        }
        let (base, inputs) = self.cut(tensor, 0..len);
        assert_eq!(selection.threshold().to_bits(), select_in_memory(base, inputs[member], density).to_bits());
        selection.threshold()
    }
}

fn ranges(len: usize, step: usize) -> impl Iterator<Item = Range<usize>> {
    (0..len).step_by(step).map(move |start| start..(start + step).min(len))
}
