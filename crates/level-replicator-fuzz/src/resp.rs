//! Bytes of a Redis client to requests.
//!
//! What must hold: requests do not depend on how the bytes were cut, no memory is taken for what has not arrived, every
//! bound is kept, and requests that were read and written again are read the same.

use fastrand::Rng;
use level_replicator_cli::resp::request::{Bounds, ProtocolError, Request, RequestReader};

use crate::mutation::mutate;
use crate::target::{Outcome, Target};

/// Requests out of a connection. An input is what a client says, from the beginning.
pub const TARGET: Target = Target {
    name: "resp",
    body: run,
    seeds,
    remake: Some(remake),
    deep_percent_min: 20,
    outcomes_min: 10,
};

/// Small, so that inputs meet them.
const BOUNDS: Bounds = Bounds {
    arguments: 64,
    argument_bytes: 512,
    request_bytes: 2_048,
    stranger: false,
};

/// What requests of any input fit into when they are written as arrays.
const WIDE: Bounds = Bounds {
    arguments: 1 << 20,
    argument_bytes: 1 << 20,
    request_bytes: 1 << 24,
    stranger: false,
};

/// Memory that a reader may take for each byte that arrived, and beside that.
const MEMORY_PER_BYTE: usize = 8;
const MEMORY_FREE: usize = 4 << 10;

type Words = Vec<Vec<u8>>;

/// Runs one input.
pub fn run(input: &[u8]) -> Outcome {
    let last = usize::from(input.last().copied().unwrap_or(0));
    let bounds = if last % 5 == 0 {
        Bounds::stranger()
    } else {
        BOUNDS
    };
    let (requests, end) = read(bounds, std::iter::once(input));
    let in_pieces = read(bounds, input.chunks(1 + last % 61));
    assert_eq!(
        in_pieces,
        (requests.clone(), end.clone()),
        "requests depend on how their bytes are cut"
    );
    let written: Vec<u8> = requests.iter().flat_map(|words| array(words)).collect();
    let again = read(WIDE, std::iter::once(&written[..]));
    assert_eq!(again, (requests.clone(), None), "requests written again");

    let count = requests.len().min(5);
    let name = match end {
        None => format!("{count} requests"),
        Some(error) => {
            let text = error.to_string();
            // The byte that was found is one of many.
            let kind = text.split(", got").next().unwrap_or_default();
            format!("{count} requests, then {kind}")
        }
    };
    Outcome {
        is_deep: !requests.is_empty(),
        name,
    }
}

fn read<'a>(
    bounds: Bounds,
    pieces: impl Iterator<Item = &'a [u8]>,
) -> (Vec<Words>, Option<ProtocolError>) {
    let mut reader = RequestReader::new(bounds);
    let mut requests = Vec::new();
    let mut arrived = 0;
    for piece in pieces {
        reader.buffer().extend_from_slice(piece);
        arrived += piece.len();
        loop {
            let next = reader.next_request();
            let allowed = MEMORY_PER_BYTE * arrived + MEMORY_FREE;
            assert!(
                reader.memory() <= allowed,
                "memory that nothing arrived for"
            );
            match next {
                Ok(Some(request)) => requests.push(words(&request, bounds)),
                Ok(None) => break,
                Err(error) => return (requests, Some(error)),
            }
        }
        reader.release();
    }
    (requests, None)
}

fn words(request: &Request, bounds: Bounds) -> Words {
    assert!(!request.is_empty(), "a request of nothing");
    assert!(request.len() <= bounds.arguments, "too many arguments");
    let words: Words = request.arguments_from(0).map(<[u8]>::to_vec).collect();
    let bytes: usize = words.iter().map(Vec::len).sum();
    assert!(bytes <= bounds.request_bytes, "too large a request");
    words
}

fn array(words: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        bytes.extend(format!("${}\r\n", word.len()).bytes());
        bytes.extend_from_slice(word);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes
}

/// What clients say.
fn seeds() -> Vec<Vec<u8>> {
    let said: [&[&str]; 6] = [
        &[
            "HELLO", "3", "AUTH", "default", "password", "SETNAME", "worker",
        ],
        &["SET", "key", "value", "PX", "1500", "NX"],
        &["MSET", "a", "1", "b", "", "c", "\r\n$3\r\n"],
        &["MULTI"],
        &["LR.RANGE", "-", "+", "REV", "LIMIT", "10"],
        &["EXEC"],
    ];
    let arrays = said.map(|words| {
        let words: Words = words.iter().map(|word| word.as_bytes().to_vec()).collect();
        array(&words)
    });
    let mut seeds = arrays.to_vec();
    seeds.push(arrays.concat());
    seeds.push(b"PING\r\nset 'a key' \"a \\x41\\n value\"\r\n\r\nget x\nquit\r\n".to_vec());
    seeds.push(
        [
            &arrays[1][..],
            b"inline 'quoted'\r\n*0\r\n*-1\r\n",
            &arrays[3],
        ]
        .concat(),
    );
    seeds
}

/// Changes a word of a request, or the words of it, and writes lengths that are right, but for some.
fn remake(random: &mut Rng, input: &[u8]) -> Vec<u8> {
    let (mut requests, _) = read(WIDE, std::iter::once(input));
    if requests.is_empty() {
        return mutate(random, input, input);
    }
    let at = random.usize(..requests.len());
    let word = random.usize(..requests[at].len());
    match random.u8(..6) {
        0 => {
            let other = requests[random.usize(..requests.len())].clone();
            requests.insert(at, other);
        }
        1 => requests[at].truncate(word + 1),
        2 => {
            let copies = 1 << random.u8(..8);
            let word = requests[at][word].clone();
            requests[at].extend(std::iter::repeat_n(word, copies));
        }
        _ => requests[at][word] = mutate(random, &requests[at][word], input),
    }
    let mut bytes: Vec<u8> = requests.iter().flat_map(|words| array(words)).collect();
    match random.u8(..8) {
        0 => bytes.truncate(random.usize(..=bytes.len())),
        1 => {
            let numbers = bytes
                .iter()
                .enumerate()
                .filter(|(_, byte)| byte.is_ascii_digit());
            let places: Vec<usize> = numbers.map(|(at, _)| at).collect();
            let at = places[random.usize(..places.len())];
            bytes[at] = b'0' + random.u8(..10);
        }
        _ => {}
    }
    bytes
}
