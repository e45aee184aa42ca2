//! Models on their way, chunk by chunk: what a node keeps of a transfer that is under way, and how it goes on.
//!
//! A transfer begins anew with each connection. Upwards the coordinator says which chunks it lacks, downwards the node knows; so what is sent
//! twice is at most what was under way when the connection broke, [`NUM_STREAMS`] chunks. [`crate::checks`] counts it.

use tapestry_core::{Digest, Signed};
use tapestry_round::Contribution;
use tapestry_round::node::{NodeEffect, NodeInput};

use crate::Sabotage;
use crate::checks::Violation;
use crate::model::Vector;
use crate::network::{Message, Party};
use crate::node::TRANSFER;
use crate::role::Fate;
use crate::scenario::Mirror;
use crate::world::World;

/// Chunks under way at one time in one transfer.
pub(crate) const NUM_STREAMS: usize = 2;

/// A transfer of one model over one connection.
#[derive(Debug, Clone)]
pub(crate) struct Transfer {
    connection: u64,
    model: Digest,
    peer: Party,
    /// Upwards: what is said once all chunks are there.
    pub(crate) contribution: Option<Signed<Contribution>>,
    is_known: bool,
    waiting: Vec<Digest>,
    under_way: Vec<Digest>,
    has_progressed: bool,
}

impl Transfer {
    pub(crate) const fn new(connection: u64, model: Digest, peer: Party) -> Self {
        Self {
            connection,
            model,
            peer,
            contribution: None,
            is_known: false,
            waiting: vec![],
            under_way: vec![],
            has_progressed: false,
        }
    }

    fn next(&mut self) -> Option<Digest> {
        if self.under_way.len() == NUM_STREAMS {
            return None;
        }
        let chunk = self.waiting.pop()?;
        self.under_way.push(chunk);
        Some(chunk)
    }

    fn is_done(&self) -> bool {
        self.is_known && self.waiting.is_empty() && self.under_way.is_empty()
    }
}

impl World {
    pub(crate) const fn connects(&mut self) -> u64 {
        self.num_connections += 1;
        self.num_connections
    }

    pub(crate) fn has_progressed(&mut self, node: usize, effect: &NodeEffect) -> bool {
        let side = &mut self.nodes[node];
        let transfer = match effect {
            NodeEffect::PullBase { .. } => &mut side.download,
            NodeEffect::SendContribution { .. } => &mut side.upload,
            _ => return false,
        };
        transfer.as_mut().is_some_and(|transfer| std::mem::take(&mut transfer.has_progressed))
    }

    /// A message of a transfer arrives at a node. One of an older connection is nobody's.
    pub(crate) fn transfer_goes_on(&mut self, node: usize, message: Message) -> Result<(), Violation> {
        let side = &mut self.nodes[node];
        let of = |transfer: &'_ Option<Transfer>, connection| {
            transfer.as_ref().is_some_and(|transfer| transfer.connection == connection)
        };
        match message {
            Message::Lacking { connection, chunks } if of(&side.upload, connection) => {
                let Some(upload) = side.upload.as_mut().filter(|upload| !upload.is_known) else { return Ok(()) };
                (upload.is_known, upload.has_progressed) = (true, true);
                self.checks.upload_begins(node, upload.model, &chunks);
                upload.waiting = match self.sabotage {
                    Some(Sabotage::SendsAllChunksAgain) => {
                        side.store.manifest(&upload.model).map(|manifest| manifest.0.clone()).unwrap_or_default()
                    }
                    _ => chunks,
                };
                self.push_chunks(node)
            }
            Message::Held { connection, digest } if of(&side.upload, connection) => {
                let Some(upload) = &mut side.upload else { return Ok(()) };
                if !upload.under_way.contains(&digest) {
                    return Ok(());
                }
                upload.under_way.retain(|chunk| *chunk != digest);
                upload.has_progressed = true;
                self.push_chunks(node)
            }
            Message::Manifest { connection, model, manifest } if of(&side.download, connection) => {
                let believes = manifest.digest() == model;
                let Some(download) = side.download.as_mut().filter(|download| !download.is_known) else {
                    return Ok(());
                };
                if download.model != model || !believes {
                    return Ok(());
                }
                (download.is_known, download.has_progressed) = (true, true);
                // What is here counts only once it is durable.
                side.store.sync();
                download.waiting = side.store.lacks(&manifest);
                side.store.write_manifest(manifest);
                self.checks.download_begins(node, model, &download.waiting);
                self.pull_chunks(node)
            }
            Message::Pulled { connection, digest, chunk } if of(&side.download, connection) => {
                // Wrong bytes are refused, and the transfer stands still until it is tried again, perhaps elsewhere.
                let believes = chunk.digest() == digest || self.sabotage == Some(Sabotage::BelievesMirrors);
                let Some(download) = &mut side.download else { return Ok(()) };
                if !believes || !download.under_way.contains(&digest) {
                    return Ok(());
                }
                if !self.keep_pulled(node, digest, chunk) {
                    return Ok(());
                }
                let Some(download) = &mut self.nodes[node].download else { return Ok(()) };
                download.under_way.retain(|chunk| *chunk != digest);
                download.has_progressed = true;
                self.pull_chunks(node)
            }
            _ => Ok(()),
        }
    }

    fn push_chunks(&mut self, node: usize) -> Result<(), Violation> {
        while let Some(digest) = self.nodes[node].upload.as_mut().and_then(Transfer::next) {
            let Some(upload) = &self.nodes[node].upload else { return Ok(()) };
            let (connection, model) = (upload.connection, upload.model);
            let chunk = self.nodes[node].store.chunk(&digest);
            let chunk = chunk.ok_or_else(|| format!("node {node} lost a chunk of what it trained"))?;
            self.checks.chunk_pushed(node, model)?;
            self.send(Party::Node(node), Party::Coordinator, Message::Push { connection, digest, chunk });
        }
        let Some(upload) = self.nodes[node].upload.as_mut().filter(|upload| upload.is_done()) else { return Ok(()) };
        let (model, signed) = (upload.model, upload.contribution.take());
        let manifest = self.nodes[node].store.manifest(&model).cloned();
        if let (Some(manifest), Some(signed)) = (manifest, signed) {
            let message = Message::Contribute(signed, manifest);
            self.seen.push(message.clone());
            self.send(Party::Node(node), Party::Coordinator, message);
        }
        Ok(())
    }

    fn pull_chunks(&mut self, node: usize) -> Result<(), Violation> {
        while let Some(chunk) = self.nodes[node].download.as_mut().and_then(Transfer::next) {
            let Some(download) = &self.nodes[node].download else { return Ok(()) };
            let (connection, model, peer) = (download.connection, download.model, download.peer);
            self.checks.chunk_pulled(node, model)?;
            self.send(Party::Node(node), peer, Message::Pull { connection, chunk });
        }
        let Some(download) = self.nodes[node].download.take_if(|download| download.is_done()) else { return Ok(()) };
        self.nodes[node].store.sync();
        let input = NodeInput::BasePulled { base: download.model, transfer: TRANSFER };
        if let Err(error) = self.node_takes(node, input)? {
            self.tell(|| format!("node {node} does not take the base: {error}"));
        }
        Ok(())
    }

    /// Writes a chunk that arrived at a node; `false` where the node died of it, or has no room.
    fn keep_pulled(&mut self, node: usize, digest: Digest, chunk: crate::model::Chunk) -> bool {
        let probability = self.crash_probability();
        let fate = Self::fate_of(&mut self.random, probability);
        let store = &mut self.nodes[node].store;
        match fate {
            Fate::DiesBefore | Fate::DiskFull => {}
            Fate::DiesUnsynced => store.write_chunk(digest, chunk),
            // A stream asks for its next chunk when the last one is durable: a power loss costs no more than a kill.
            Fate::Done | Fate::DiesAfter => {
                store.write_chunk(digest, chunk);
                store.sync();
            }
        }
        if matches!(fate, Fate::DiesBefore | Fate::DiesUnsynced | Fate::DiesAfter) {
            self.died(Party::Node(node));
        }
        fate == Fate::Done
    }

    /// Makes a model durable that was made here, write by write; `false` where that did not come to its end.
    pub(crate) fn keep(&mut self, party: Party, model: &Vector) -> bool {
        self.blobs.put(model.clone());
        let probability = self.crash_probability();
        let writes = model.chunks().map(Some).chain([None]);
        for write in writes.collect::<Vec<_>>() {
            let fate = Self::fate_of(&mut self.random, probability);
            let store = match party {
                Party::Node(node) => &mut self.nodes[node].store,
                _ => &mut self.store,
            };
            if matches!(fate, Fate::Done | Fate::DiesUnsynced | Fate::DiesAfter) {
                match write {
                    Some(chunk) => store.write_chunk(chunk.digest(), chunk),
                    None => store.write_manifest(model.manifest()),
                }
            }
            match fate {
                Fate::Done => continue,
                Fate::DiskFull => return false,
                Fate::DiesAfter => store.sync(),
                Fate::DiesBefore | Fate::DiesUnsynced => {}
            }
            self.died(party);
            return false;
        }
        let forgets = self.sabotage == Some(Sabotage::NodeSkipsSync) && matches!(party, Party::Node(_));
        match party {
            _ if forgets => {}
            Party::Node(node) => self.nodes[node].store.sync(),
            _ => self.store.sync(),
        }
        true
    }

    /// A mirror is asked. A lying one serves other bytes under the right name.
    pub(crate) fn mirror_hears(&mut self, from: Party, message: &Message) {
        let lies = self.scenario.mirror == Some(Mirror::Lying) && self.random.chance(0.5);
        let answer = match message {
            Message::PullManifest { connection, model } => self.blobs.find(model).map(|found| {
                let (connection, model, mut manifest) = (*connection, *model, found.manifest());
                if lies {
                    manifest.0.reverse();
                }
                Message::Manifest { connection, model, manifest }
            }),
            Message::Pull { connection, chunk } => self.blobs.chunk(chunk).map(|found| {
                let (connection, digest) = (*connection, *chunk);
                Message::Pulled { connection, digest, chunk: if lies { found.spoiled() } else { found } }
            }),
            _ => None,
        };
        if let Some(answer) = answer {
            self.send(Party::Mirror, from, answer);
        }
    }
}
