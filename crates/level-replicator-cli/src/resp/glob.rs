//! Patterns of keys and channels as Redis has them: `*`, `?`, `[a-z]`, `[^a]`, and `\` before what is meant literally.
//!
//! The rule: matching takes at most pattern times text steps, whatever the pattern. Of several `*` only the last one
//! that was passed is ever tried again: what an earlier one took need not be given back.

/// Whether a text matches a pattern.
pub(crate) fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut at, mut place) = (0, 0);
    // Where to go on after the last `*`, and how much of the text it has taken.
    let mut retry: Option<(usize, usize)> = None;
    loop {
        if pattern.get(at) == Some(&b'*') {
            at += 1;
            retry = Some((at, place));
            continue;
        }
        let byte = text.get(place).copied();
        match (byte, pattern.get(at)) {
            (None, None) => return true,
            (None, Some(_)) => return false,
            (Some(byte), Some(_)) => {
                let (matched, next) = match_one(pattern, at, byte);
                if matched {
                    (at, place) = (next, place + 1);
                    continue;
                }
            }
            (Some(_), None) => {}
        }
        match &mut retry {
            None => return false,
            Some((after, taken)) => {
                *taken += 1;
                (at, place) = (*after, *taken);
            }
        }
    }
}

/// What every text begins with that matches: it narrows a search in a range of keys.
pub(crate) fn literal_prefix(pattern: &[u8]) -> Vec<u8> {
    let mut prefix = Vec::new();
    let mut rest = pattern;
    loop {
        match rest {
            [] | [b'*' | b'?' | b'[', ..] => return prefix,
            [b'\\', literal, tail @ ..] => {
                prefix.push(*literal);
                rest = tail;
            }
            [literal, tail @ ..] => {
                prefix.push(*literal);
                rest = tail;
            }
        }
    }
}

/// Whether one byte matches what stands at a place that is no `*`, and where the pattern goes on.
fn match_one(pattern: &[u8], at: usize, byte: u8) -> (bool, usize) {
    match &pattern[at..] {
        [b'?', ..] => (true, at + 1),
        [b'\\', literal, ..] => (*literal == byte, at + 2),
        [b'[', ..] => match_class(pattern, at + 1, byte),
        [literal, ..] => (*literal == byte, at + 1),
        [] => (false, at),
    }
}

/// One of several bytes. A class that is not closed ends with the pattern, as in Redis.
fn match_class(pattern: &[u8], mut at: usize, byte: u8) -> (bool, usize) {
    let is_negated = pattern.get(at) == Some(&b'^');
    at += usize::from(is_negated);
    let mut found = false;
    loop {
        match &pattern[at.min(pattern.len())..] {
            [] => break,
            [b']', ..] => {
                at += 1;
                break;
            }
            [b'\\', literal, ..] => {
                found |= *literal == byte;
                at += 2;
            }
            [first, b'-', last, ..] => {
                let (low, high) = (first.min(last), first.max(last));
                found |= (*low..=*high).contains(&byte);
                at += 3;
            }
            [literal, ..] => {
                found |= *literal == byte;
                at += 1;
            }
        }
    }
    (found != is_negated, at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_mean_what_they_mean_in_redis() {
        for (pattern, yes, no) in [
            ("", &[""][..], &["a"][..]),
            ("*", &["", "abc"], &[]),
            ("h?llo", &["hello", "hallo"], &["hllo", "heello"]),
            ("h*llo", &["hllo", "heeeello"], &["hell", "xhllo"]),
            ("h[ae]llo", &["hello", "hallo"], &["hillo"]),
            ("h[^e]llo", &["hallo"], &["hello", "hllo"]),
            ("h[a-b]llo", &["hallo", "hbllo"], &["hcllo"]),
            ("h[b-a]llo", &["hallo"], &["hcllo"]),
            ("\\*a", &["*a"], &["xa"]),
            ("[\\]]", &["]"], &["\\"]),
            ("a\\", &["a\\"], &["a"]),
            ("*a*b*c", &["abc", "xaxbxc", "aabbcc"], &["acb", "abcd"]),
            (
                "user:*:name",
                &["user:7:name", "user::name"],
                &["user:7:nam"],
            ),
            ("[a", &["a"], &["b"]),
        ] {
            for text in yes {
                assert!(
                    matches(pattern.as_bytes(), text.as_bytes()),
                    "{pattern} {text}"
                );
            }
            for text in no {
                assert!(
                    !matches(pattern.as_bytes(), text.as_bytes()),
                    "{pattern} {text}"
                );
            }
        }
    }

    #[test]
    fn a_hostile_pattern_does_not_take_for_ever() {
        let pattern = b"*a".repeat(1_000);
        let text = vec![b'a'; 60_000];
        assert!(matches(&pattern, &text));
        assert!(!matches(&[&pattern[..], b"b"].concat(), &text));
    }

    #[test]
    fn the_literal_beginning_of_a_pattern_is_a_prefix_of_all_that_match() {
        for (pattern, prefix) in [
            ("user:*", "user:"),
            ("a\\*b?c", "a*b"),
            ("[a]b", ""),
            ("plain", "plain"),
            ("end\\", "end\\"),
        ] {
            assert_eq!(literal_prefix(pattern.as_bytes()), prefix.as_bytes());
        }
    }
}
