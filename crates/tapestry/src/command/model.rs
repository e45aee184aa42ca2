//! `tapestry model`.

use crate::cli::{GgufTypeArg, ModelCommand};
use crate::home::Home;
use crate::progress::{Form, Reporter};
use crate::role::Role;
use crate::stores::open_blobs;
use anyhow::{Context as _, Result, bail};
use std::path::Path;
use tapestry_core::{Digest, ModelManifest};
use tapestry_round::coordinator::Coordinator;
use tapestry_round::node::Node;
use tapestry_weights::gguf::{GgufStorage, export_gguf};

pub(crate) async fn run(command: ModelCommand) -> Result<()> {
    match command {
        ModelCommand::List { home } => {
            for (name, digest) in held(&Home::at(&home)).await? {
                println!("{name:<12} {digest}");
            }
            Ok(())
        }
        ModelCommand::Gguf { model, storage, out } => {
            let storage = match storage {
                GgufTypeArg::F32 => GgufStorage::F32,
                GgufTypeArg::F16 => GgufStorage::F16,
                GgufTypeArg::Bf16 => GgufStorage::BF16,
                GgufTypeArg::Q8_0 => GgufStorage::Q8_0,
            };
            let mut working = Reporter::new(Form::People).start("write", out.display().to_string(), "bytes");
            export_gguf(&model, &out, storage, &mut |done, total| working.update(done, total))?;
            working.end();
            println!("the model is in {}", out.display());
            Ok(())
        }
        ModelCommand::Export { model, home, out } => {
            let digest = export(&Home::at(&home), &model, &out).await?;
            println!("{digest} is in {}", out.display());
            Ok(())
        }
    }
}

/// The models of a role by name.
async fn held(home: &Home) -> Result<Vec<(&'static str, Digest)>> {
    let key = home.key()?;
    let mut models = vec![];
    if home.path("node.toml").exists() {
        let role = Role::<Node>::open(home, &key).await?;
        models.extend(role.state().base().map(|digest| ("shared-base", digest)));
        models.extend(role.state().sovereign().map(|model| ("sovereign", model.digest())));
    } else {
        let role = Role::<Coordinator>::open(home, &key).await?;
        models.extend(role.state().base().map(|digest| ("shared-base", digest)));
    }
    Ok(models)
}

/// Writes a model into a new folder and returns its digest.
pub(crate) async fn export(home: &Home, name: &str, out: &Path) -> Result<Digest> {
    let models = held(home).await?;
    let digest = match models.iter().find(|(known, _)| *known == name) {
        Some((_, digest)) => *digest,
        None => match name.parse() {
            Ok(digest) => digest,
            Err(_) => {
                let known: Vec<_> = models.iter().map(|(name, _)| *name).collect();
                bail!("{} holds no model {name:?}; it holds: {}", home.dir().display(), known.join(", "))
            }
        },
    };
    let blobs = open_blobs(home).await?;
    let manifest: ModelManifest = blobs.get_json(digest).await.with_context(|| format!("the manifest of {digest}"))?;
    blobs.export_model(&manifest, out).await?;
    Ok(digest)
}
