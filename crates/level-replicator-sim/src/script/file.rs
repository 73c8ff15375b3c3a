//! A scenario as text: prose, commands, and below each command, indented, what it said.

/// One line of a scenario that is not output.
pub(super) enum Line<'a> {
    /// A title, a comment or an empty line.
    Prose(&'a str),
    /// Something to do.
    Command(&'a str),
}

/// The lines of a scenario without the output that it expects.
pub(super) fn lines(text: &str) -> impl Iterator<Item = Line<'_>> {
    let is_output = |line: &&str| line.starts_with(' ') && !line.trim().is_empty();
    text.lines()
        .filter(move |line| !is_output(line))
        .map(|line| {
            if line.trim().is_empty() || line.starts_with('#') {
                Line::Prose(line)
            } else {
                Line::Command(line)
            }
        })
}

/// The words of a command. Quotes hold a word together, also an empty one; commas stand alone.
pub(super) fn words(command: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut is_quoted = false;
    for letter in command.chars() {
        match letter {
            '"' => {
                is_quoted = !is_quoted;
                word.get_or_insert_default();
            }
            ',' if !is_quoted => {
                words.extend(word.take());
                words.push(",".to_owned());
            }
            letter if letter.is_whitespace() && !is_quoted => words.extend(word.take()),
            letter => word.get_or_insert_default().push(letter),
        }
    }
    words.extend(word);
    words
}
