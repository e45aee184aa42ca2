//! Key shares of X25519MLKEM768 from either side: each is refused, or gives a secret; nothing panics.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tapestry_tls::X25519MLKEM768;

/// What a client sends; a server sends less.
const LONGEST: usize = 1216;
const SERVER_SHARE: usize = 1120;

fuzz_target!(|data: &[u8]| {
    let _ = X25519MLKEM768.start_and_complete(data);
    let offer = X25519MLKEM768.start().expect("the system has randomness");
    let _ = offer.complete(data);
    // An honest share over which the input is laid comes further: lengths are right.
    let offer = X25519MLKEM768.start().expect("the system has randomness");
    let honest = offer.pub_key().to_vec();
    let bent: Vec<u8> = (0..LONGEST).map(|at| honest[at] ^ data.get(at).copied().unwrap_or(0)).collect();
    if let Ok(answer) = X25519MLKEM768.start_and_complete(&bent) {
        assert_eq!((answer.pub_key.len(), answer.secret.secret_bytes().len()), (SERVER_SHARE, 64));
        let agreed = offer.complete(&answer.pub_key).expect("a server's own share has the right form");
        // The last bit of a key of X25519 is not read (RFC 7748, section 5).
        let last = bent[LONGEST - 1] & 0x7f == honest[LONGEST - 1] & 0x7f;
        let same = bent[..LONGEST - 1] == honest[..LONGEST - 1] && last;
        assert_eq!(agreed.secret_bytes() == answer.secret.secret_bytes(), same);
    }
});
