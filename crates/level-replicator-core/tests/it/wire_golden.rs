//! The bytes of the wire and the disk, as files: what was once written must be readable for ever.
//!
//! `UPDATE_GOLDEN=1` writes the files anew, which is right only for a new version of a format.

use std::fs;
use std::path::Path;

use bytes::Bytes;
use level_replicator_core::announcement::Announcement;
use level_replicator_core::clock::WriterId;
use level_replicator_core::frame::{FrameReader, FrameWriter};
use level_replicator_core::message::Message;
use level_replicator_core::record::{Record, decode_row, encode_row};

use crate::samples::{delete, messages, put, record, siblings, writers};

fn hex(bytes: &[u8]) -> String {
    let lines = bytes
        .chunks(32)
        .map(|line| line.iter().map(|byte| format!("{byte:02x}")).collect());
    lines.collect::<Vec<String>>().join("\n")
}

fn unhex(text: &str) -> Vec<u8> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let digits: String = lines.collect();
    let pairs = digits
        .as_bytes()
        .chunks(2)
        .map(|pair| std::str::from_utf8(pair).expect("hex"));
    pairs
        .map(|pair| u8::from_str_radix(pair, 16).expect("hex"))
        .collect()
}

/// Compares bytes with a file, and answers what the file holds.
fn golden(name: &str, comment: &str, bytes: &[u8]) -> Vec<u8> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let path = folder.join(format!("{name}.hex"));
    let text = format!("# {comment}\n{}\n", hex(bytes));
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::create_dir_all(&folder).expect("the folder can be made");
        fs::write(&path, &text).expect("the file can be written");
    }
    let kept = fs::read_to_string(&path).expect("the file is there: UPDATE_GOLDEN=1 writes it");
    assert_eq!(kept, text, "{name} is written in another way than it was");
    unhex(&kept)
}

#[test]
fn every_message_keeps_its_bytes() {
    for (name, message) in messages() {
        let mut writer = FrameWriter::default();
        message.encode(&mut writer);
        let frame = writer.take();
        let comment = format!("One whole frame: the message {name}.");

        let kept = golden(&format!("message_{name}"), &comment, &frame);

        let mut reader = FrameReader::default();
        reader.push(&kept);
        let frame = reader
            .next_frame()
            .expect("a good frame")
            .expect("a whole frame");
        assert_eq!(Message::decode(frame), Ok(message));
    }
}

#[test]
fn a_frame_keeps_its_header_with_and_without_compression() {
    let mut writer = FrameWriter::default();
    writer.push(3, b"payload");
    golden(
        "frame_plain",
        "A frame of kind 3 with the payload 'payload'.",
        &writer.take(),
    );

    let mut writer = FrameWriter::default();
    writer.push(4, &[7; 4_096]);
    let kept = golden(
        "frame_compressed",
        "A frame of kind 4 with 4096 times the byte 7.",
        &writer.take(),
    );
    let mut reader = FrameReader::default();
    reader.push(&kept);
    let frame = reader
        .next_frame()
        .expect("a good frame")
        .expect("a whole frame");
    assert_eq!((frame.kind, &frame.payload[..]), (4, &[7; 4_096][..]));
}

#[test]
fn an_announcement_keeps_its_bytes() {
    let announcement = Announcement {
        instance: 0x0102_0304_0506_0708,
        wants_answer: true,
        host: "db1.example.net".to_owned(),
        port: 9_000,
    };
    let kept = golden(
        "announcement",
        "An announcement with the key of 32 times the byte 3.",
        &announcement.encode(&[3; 32]),
    );
    assert_eq!(Announcement::decode(&kept, &[3; 32]), Ok(announcement));
}

#[test]
fn every_form_of_a_stored_record_keeps_its_bytes() {
    let rows: [(&str, &str, Record); 3] = [
        (
            "row_put",
            "A row of key 'key': one put.",
            record(&[put(1, 7, b"value")], &[]),
        ),
        (
            "row_delete",
            "A row of key 'key': one delete.",
            record(&[delete(2, 9)], &[]),
        ),
        (
            "row_siblings",
            "A row of key 'key': two puts, a delete and a history.",
            siblings(),
        ),
    ];
    let writers = writers();
    let ord = |writer: WriterId| writers.ord(writer).expect("described");
    for (name, comment, record) in rows {
        let row = encode_row(b"key", &record, ord);
        let kept = golden(name, comment, &row);
        assert_eq!(decode_row(b"key", Bytes::from(kept), &writers), Ok(record));
    }
}
