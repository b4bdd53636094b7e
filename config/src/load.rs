//! From a file to settings, or to everything that is wrong with it.
//!
//! serde stops at the first fault. So each key is read as a file of its own, the good ones are put together, and what
//! they say is checked after that.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use toml::de::DeTable;
use toml::{Table, Value};

use crate::finding::Finding;
use crate::{Fault, Faults, Settings, check, host, nearest};

/// How much is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Only what the file itself shows: keys, types, values.
    Values,
    /// Also whether this host has what the file names.
    Host,
}

impl Settings {
    /// Reads a settings file. Every key has a default, so an empty file is a good one.
    ///
    /// # Errors
    /// [`Faults`]: every fault of the file at once.
    pub fn load(file: &Path, scope: Scope) -> Result<Self, Faults> {
        let text = std::fs::read_to_string(file).map_err(|error| {
            let wrong = format!("cannot be read: {error}");
            let right = "name a readable file, or make one from --print-config".to_owned();
            let fault = Fault { line: None, key: String::new(), value: String::new(), wrong, right };
            Faults { file: file.to_path_buf(), faults: vec![fault] }
        })?;
        Self::parse(&text, scope).map_err(|faults| Faults { file: file.to_path_buf(), faults })
    }

    /// Reads the text of a settings file.
    ///
    /// # Errors
    /// Every fault of the text at once, in its order.
    pub fn parse(text: &str, scope: Scope) -> Result<Self, Vec<Fault>> {
        let document = Document::new(text)?;
        let (settings, mut faults) = document.settings();
        let mut findings = check::values(&settings);
        if scope == Scope::Host {
            findings.extend(host::findings(&settings));
        }
        for finding in findings {
            // Of a key that could not be read only that is known.
            if !faults.iter().any(|fault| fault.key == finding.key) {
                faults.push(document.place(finding));
            }
        }
        if faults.is_empty() {
            return Ok(settings);
        }
        faults.sort_by_key(|fault| fault.line.unwrap_or(usize::MAX));
        Err(faults)
    }

    /// The settings as a file with every key, which [`Settings::load`] reads back to the same.
    ///
    /// # Errors
    /// What TOML cannot express, for example a path that is not UTF-8.
    pub fn to_toml(&self) -> Result<String, toml::ser::Error> {
        toml::to_string_pretty(self)
    }
}

/// A settings file that is good TOML.
struct Document<'a> {
    text: &'a str,
    tables: Table,
    /// Where each dotted key's value is.
    places: BTreeMap<String, Range<usize>>,
}

impl<'a> Document<'a> {
    fn new(text: &'a str) -> Result<Self, Vec<Fault>> {
        let (spanned, errors) = DeTable::parse_recoverable(text);
        let mut errors: Vec<Fault> = errors.iter().map(|error| syntax_fault(text, error)).collect();
        errors.sort_by_key(|fault| fault.line);
        if !errors.is_empty() {
            return Err(errors);
        }
        let mut places = BTreeMap::new();
        for (section, value) in spanned.get_ref() {
            let section = section.get_ref();
            places.insert(section.to_string(), value.span());
            for (key, value) in value.get_ref().as_table().into_iter().flatten() {
                places.insert(format!("{section}.{}", key.get_ref()), value.span());
            }
        }
        let tables = toml::from_str(text).map_err(|error| vec![syntax_fault(text, &error)])?;
        Ok(Self { text, tables, places })
    }

    /// The settings of the good keys, and the faults of the others.
    fn settings(&self) -> (Settings, Vec<Fault>) {
        let known = known_keys();
        let mut good = Table::new();
        let mut faults = Vec::new();
        for (section, value) in &self.tables {
            let Some(known_here) = known.get(section) else {
                faults.push(self.unknown_section(section, &known));
                continue;
            };
            let Value::Table(keys) = value else {
                let (wrong, right) =
                    (format!("{} where a table belongs", value.type_str()), format!("write [{section}]"));
                faults.push(self.fault(section, wrong, right));
                continue;
            };
            let mut good_here = Table::new();
            for (key, value) in keys {
                let dotted = format!("{section}.{key}");
                if !known_here.contains(key) {
                    let (wrong, right) = ("unknown key".to_owned(), hint(key, section, &known));
                    faults.push(self.fault(&dotted, wrong, right));
                } else if let Err(error) = alone(section, key, value) {
                    faults.push(self.fault(&dotted, error.message().to_owned(), String::new()));
                } else {
                    good_here.insert(key.clone(), value.clone());
                }
            }
            good.insert(section.clone(), Value::Table(good_here));
        }
        // Each key was good alone, and no key depends on another to be read.
        let settings = Value::Table(good).try_into().unwrap_or_else(|error: toml::de::Error| {
            faults.push(self.fault("", error.message().to_owned(), String::new()));
            Settings::default()
        });
        (settings, faults)
    }

    fn unknown_section(&self, section: &str, known: &BTreeMap<String, Vec<String>>) -> Fault {
        let right = nearest::nearest(section, known.keys().map(String::as_str)).map_or_else(
            || format!("known are {}", known.keys().cloned().collect::<Vec<_>>().join(", ")),
            |name| format!("did you mean [{name}]?"),
        );
        let line = self.places.get(section).map(|span| line_of(self.text, span.start));
        let (key, value, wrong) = (section.to_owned(), String::new(), "unknown table".to_owned());
        Fault { line, key, value, wrong, right }
    }

    fn fault(&self, dotted: &str, wrong: String, right: String) -> Fault {
        let span = self.places.get(dotted);
        let line = span.map(|span| line_of(self.text, span.start));
        let value = span.and_then(|span| self.text.get(span.clone())).unwrap_or_default().to_owned();
        Fault { line, key: dotted.to_owned(), value, wrong, right }
    }

    fn place(&self, finding: Finding) -> Fault {
        let Finding { key, value, wrong, right } = finding;
        let line = self.places.get(&key).map(|span| line_of(self.text, span.start));
        Fault { line, key, value, wrong, right }
    }
}

fn syntax_fault(text: &str, error: &toml::de::Error) -> Fault {
    let line = error.span().map(|span| line_of(text, span.start));
    let wrong = format!("not TOML: {}", error.message());
    Fault { line, key: String::new(), value: String::new(), wrong, right: String::new() }
}

fn line_of(text: &str, offset: usize) -> usize {
    1 + text.bytes().take(offset).filter(|byte| *byte == b'\n').count()
}

/// The defaults name every table and key there is.
fn known_keys() -> BTreeMap<String, Vec<String>> {
    let defaults = Table::try_from(Settings::default()).unwrap_or_default();
    let keys = |value: Value| match value {
        Value::Table(table) => table.keys().cloned().collect(),
        Value::String(_)
        | Value::Integer(_)
        | Value::Float(_)
        | Value::Boolean(_)
        | Value::Datetime(_)
        | Value::Array(_) => Vec::new(),
    };
    defaults.into_iter().map(|(section, value)| (section, keys(value))).collect()
}

/// Reads a file that holds nothing but this key.
fn alone(section: &str, key: &str, value: &Value) -> Result<Settings, toml::de::Error> {
    let keys = Table::from_iter([(key.to_owned(), value.clone())]);
    Value::Table(Table::from_iter([(section.to_owned(), Value::Table(keys))])).try_into()
}

/// What an unknown key may have meant: a key like it here, or the same key in another table.
fn hint(key: &str, section: &str, known: &BTreeMap<String, Vec<String>>) -> String {
    let here = known.get(section).into_iter().flatten().map(String::as_str);
    if let Some(name) = nearest::nearest(key, here.clone()) {
        return format!("did you mean {name}?");
    }
    match known.iter().find(|(_, keys)| keys.iter().any(|known| known == key)) {
        Some((elsewhere, _)) => format!("{key} belongs into [{elsewhere}]"),
        None => format!("[{section}] has {}", here.collect::<Vec<_>>().join(", ")),
    }
}
