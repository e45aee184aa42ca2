//! The grammars of quick mode. All phrases are written for this project.

use super::grammar::Grammar;
use crate::members::TextSource;

/// The grammar in the language and manner of a source.
pub(super) fn of(source: TextSource) -> &'static Grammar {
    match source {
        TextSource::LabourCode => &RULES_OF_WORK,
        TextSource::ChineseClassics => &CHINESE_VERSE,
        TextSource::Hafez => &PERSIAN_COUPLETS,
        TextSource::ConstitutionAndKural => &TAMIL_PROVERBS,
        TextSource::StateOfTheUnion => &SPEECHES,
        TextSource::GeneralEnglish => &GENERAL_ENGLISH,
    }
}

/// Articles of a code, in French.
static RULES_OF_WORK: Grammar = Grammar {
    word_separator: " ",
    rules: &[
        (
            "article",
            &["{head}\n{clause}\n{clause}\n{clause}", "{head}\n{clause}\n{clause}", "{head}\n{list}\n{clause}"],
        ),
        ("head", &["Article L. {d}{d}{d}{d}-{d}", "Article R. {d}{d}{d}{d}-{d}", "Article D. {d}{d}{d}{d}-{d}{d}"]),
        ("list", &["{actor} {duty} :\n1° {object} ;\n2° {object} ;\n3° {object}."]),
        (
            "clause",
            &[
                "{actor} {duty} {object} {term}.",
                "{condition}, {actor_low} {duty} {object}.",
                "{actor} {duty} {object}, {condition_low}.",
                "Le montant de {object_of} est fixé à {d}{d} pour cent {term}.",
            ],
        ),
        (
            "condition",
            &["En cas de {event}", "Sauf accord contraire", "Lorsque la durée du travail dépasse {d}{d} heures"],
        ),
        ("condition_low", &["en cas de {event}", "sauf accord contraire", "dans les conditions fixées par décret"]),
        (
            "actor",
            &[
                "L'employeur",
                "Le salarié",
                "Le comité d'entreprise",
                "L'inspecteur du travail",
                "Le conseil",
                "Le médecin du travail",
            ],
        ),
        (
            "actor_low",
            &[
                "l'employeur",
                "le salarié",
                "le comité d'entreprise",
                "l'inspecteur du travail",
                "le délégué",
                "le conseil",
            ],
        ),
        (
            "duty",
            &[
                "est tenu de communiquer",
                "peut demander",
                "établit chaque année",
                "transmet sans délai",
                "doit conserver",
                "ne peut refuser",
            ],
        ),
        (
            "object",
            &[
                "le registre du personnel",
                "la convention collective",
                "le contrat de travail",
                "le bulletin de paie",
                "la déclaration préalable",
                "le règlement intérieur",
                "une copie de l'accord",
                "le relevé des heures effectuées",
            ],
        ),
        (
            "object_of",
            &[
                "l'indemnité de départ",
                "la prime d'ancienneté",
                "la majoration de salaire",
                "la contribution patronale",
            ],
        ),
        (
            "event",
            &[
                "licenciement",
                "maladie professionnelle",
                "grève",
                "accident du travail",
                "suspension du contrat",
                "congé de maternité",
            ],
        ),
        (
            "term",
            &[
                "dans un délai de {d}{d} jours",
                "avant la fin du mois",
                "au plus tard le {d} janvier",
                "pendant {d} ans",
                "à la date prévue",
            ],
        ),
        ("d", &["1", "2", "3", "4", "5", "6", "7", "8", "9"]),
    ],
};

/// Quatrains of five characters a line, in Chinese.
static CHINESE_VERSE: Grammar = Grammar {
    word_separator: "",
    rules: &[
        ("poem", &["{title}\n{couplet}\n{couplet}\n{couplet}\n{couplet}", "{title}\n{couplet}\n{couplet}\n{couplet}"]),
        ("title", &["{season}{place}", "{place}夜坐", "送{friend}", "題{place}", "{season}日憶{friend}"]),
        (
            "couplet",
            &[
                "{season}{thing}{motion}{place}，{quiet}{thing}{feeling}。",
                "{quiet}{thing}{motion}{place}，{friend}{feeling}。",
            ],
        ),
        ("friend", &["故人", "山僧", "漁父", "稚子", "遊子", "將軍"]),
        ("place", &["西樓", "東山", "江南", "古寺", "長亭", "寒溪", "關外", "白石"]),
        ("season", &["春", "秋", "寒", "暮", "曉", "夏"]),
        ("quiet", &["空", "孤", "清", "幽", "遠", "閑"]),
        ("thing", &["風", "月", "雲", "雨", "花", "雁", "舟", "松"]),
        ("motion", &["入", "過", "照", "滿", "歸", "落"]),
        ("feeling", &["不知愁", "使人老", "共誰語", "憶舊遊", "獨登臨", "夢中來"]),
    ],
};

/// Couplets with a refrain, in Persian.
static PERSIAN_COUPLETS: Grammar = Grammar {
    word_separator: " ",
    rules: &[
        ("poem", &["{couplet}\n{couplet}\n{couplet}\n{couplet}\n{seal}", "{couplet}\n{couplet}\n{couplet}\n{seal}"]),
        (
            "couplet",
            &[
                "ای {one}، {thing} {state} است\n{place} بی {thing} {state} است",
                "{one} {deed} در {place}\n{thing} من {state} است",
                "گر {one} {deed} شبی\n{place} از {thing} {state} است",
            ],
        ),
        ("seal", &["بنویس که {thing} {state} است\nاین {place} ما {state} است"]),
        ("one", &["ساقی", "یار", "دلبر", "باد صبا", "پیر مغان", "عاشق", "بلبل"]),
        ("thing", &["دل", "جام می", "زلف تو", "راز عشق", "چشم مست", "شمع شب", "گل سرخ"]),
        ("place", &["باغ", "میخانه", "کوی دوست", "بزم ما", "راه عشق", "گلستان"]),
        ("state", &["خوش", "خونین", "پنهان", "روشن", "بی قرار", "شیرین"]),
        ("deed", &["می گذرد", "می خندد", "می سوزد", "باز آید", "می نالد"]),
    ],
};

/// Proverbs of two lines, in Tamil.
static TAMIL_PROVERBS: Grammar = Grammar {
    word_separator: " ",
    rules: &[
        ("page", &["{proverb}\n{proverb}\n{proverb}\n{proverb}", "{proverb}\n{proverb}\n{proverb}"]),
        ("proverb", &["{quality} இல்லா {holder}\n{loss} போல {end}.", "{quality} உடைய {holder}\n{gain} போல {end}."]),
        ("quality", &["அன்பு", "அறிவு", "பொறுமை", "வாய்மை", "ஈகை", "ஒழுக்கம்", "நட்பு"]),
        ("holder", &["மனிதன்", "வீடு", "அரசன்", "நாடு", "செல்வம்", "சொல்"]),
        ("loss", &["நீரில்லா வயல்", "வேரில்லா மரம்", "ஒளியில்லா விளக்கு", "கரையில்லா ஆறு"]),
        ("gain", &["மழை கண்ட வயல்", "நிழல் தரும் மரம்", "இருளில் விளக்கு", "நிறைந்த குளம்"]),
        ("end", &["வாழும்", "தேயும்", "நிலைக்கும்", "மறையும்", "வளரும்"]),
    ],
};

/// Speeches to an assembly, in English.
static SPEECHES: Grammar = Grammar {
    word_separator: " ",
    rules: &[
        (
            "speech",
            &["{opening}\n{point} {point} {point}\n{closing}", "{opening}\n{point} {point}\n{point}\n{closing}"],
        ),
        (
            "opening",
            &[
                "Fellow citizens of the Senate and House:",
                "Mr. Speaker, members of the Congress:",
                "My fellow citizens:",
            ],
        ),
        (
            "point",
            &[
                "I recommend that the Congress {act} the {matter}.",
                "The report on our {matter} {report} this year.",
                "The Secretary informs me that work on the {matter} {report}.",
                "Let us {act} our {matter}, and let us do it now.",
                "The Treasury received {d}{d} million dollars from the {matter}.",
            ],
        ),
        ("closing", &["The state of the Union is {state}.", "With faith in our people, we shall stay {state}."]),
        ("act", &["provide for", "strengthen", "reform", "consider with care", "appropriate funds for"]),
        (
            "matter",
            &[
                "public lands",
                "foreign commerce",
                "postal service",
                "Navy",
                "import duties",
                "national debt",
                "railroads",
            ],
        ),
        (
            "report",
            &[
                "has prospered",
                "requires your attention",
                "was conducted with economy",
                "has suffered",
                "shows a surplus",
            ],
        ),
        ("state", &["strong", "free", "at peace", "sound", "united"]),
        ("d", &["1", "2", "3", "4", "5", "6", "7", "8", "9"]),
    ],
};

/// Plain descriptions, in English: what the open held-out text is made of.
pub(super) static GENERAL_ENGLISH: Grammar = Grammar {
    word_separator: " ",
    rules: &[
        ("note", &["{s} {s} {s} {s}", "{s} {s} {s} {s} {s}", "{s} {s} {s}\n\n{s} {s} {s}"]),
        (
            "s",
            &[
                "The {adjective} {noun} {verb} the {noun} {where}.",
                "Every {time} a {noun} {verb} the {adjective} {noun}.",
                "{where_first}, the {noun} is {adjective} and the {noun} is {adjective}.",
                "People say that the {noun} {verb} nothing but {mass}.",
                "In {d}{d} days the {noun} {verb} {d} times more {mass}.",
                "When the {noun} {verb} the {noun}, {mass} becomes {adjective}.",
            ],
        ),
        (
            "noun",
            &[
                "river", "motor", "teacher", "village", "library", "harbour", "forest", "machine", "letter", "bridge",
                "garden", "market", "doctor", "valley", "ship", "winter",
            ],
        ),
        (
            "verb",
            &["crosses", "needs", "carries", "follows", "leaves", "changes", "reaches", "holds", "finds", "repairs"],
        ),
        (
            "adjective",
            &["old", "quiet", "large", "cold", "narrow", "famous", "northern", "careful", "empty", "useful", "young"],
        ),
        ("mass", &["water", "grain", "paper", "music", "light", "iron", "news", "time"]),
        (
            "where",
            &["near the coast", "in the town", "beyond the hills", "at night", "before the rain", "after the war"],
        ),
        ("where_first", &["Near the coast", "In the town", "Beyond the hills", "At night", "After the war"]),
        ("time", &["morning", "summer", "year", "evening", "week"]),
        ("d", &["2", "3", "4", "5", "6", "7", "8", "9"]),
    ],
};

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [&Grammar; 6] =
        [&RULES_OF_WORK, &CHINESE_VERSE, &PERSIAN_COUPLETS, &TAMIL_PROVERBS, &SPEECHES, &GENERAL_ENGLISH];

    #[test]
    fn rules_refer_to_later_rules_only_and_each_is_used() {
        for grammar in ALL {
            let mut used = vec![grammar.rules[0].0];
            for (i, (name, alternatives)) in grammar.rules.iter().enumerate() {
                assert!(!alternatives.is_empty(), "{name}");
                for part in alternatives.iter().flat_map(|a| a.split('{').skip(1)) {
                    let (reference, _) = part.split_once('}').expect("a closed brace");
                    let target = grammar.rules.iter().position(|(n, _)| *n == reference);
                    assert!(target.is_some_and(|t| t > i), "{name} refers to {reference}");
                    used.push(reference);
                }
            }
            assert!(grammar.rules.iter().all(|(name, _)| used.contains(name)), "{used:?}");
        }
    }
}
