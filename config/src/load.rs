//! From a file to settings, or to everything that is wrong with it.
//!
//! serde stops at the first fault. So each key is read as a file of its own, the good ones are put together, and what
//! they say is checked after that. A profile is put together from its own keys and those of the top level before it is read
//! as settings, so that it is checked like any file; a fault in it has the key as its author wrote it.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use toml::de::DeTable;
use toml::{Table, Value};

use crate::finding::Finding;
use crate::profile::{self, LISTEN, PROFILE};
use crate::profile_name::ProfileName;
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
        for finding in document.findings(&settings, scope) {
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
        let mut text = toml::to_string_pretty(&Self { profiles: BTreeMap::new(), ..self.clone() })?;
        if !self.profiles.is_empty() {
            let printed = Table::from_iter([(PROFILE.to_owned(), profile::printed(&self.profiles)?.into())]);
            text.push('\n');
            text.push_str(&toml::to_string_pretty(&printed)?);
        }
        Ok(text)
    }
}

/// What is wrong with the values of one profile.
fn findings_of(settings: &Settings, scope: Scope) -> Vec<Finding> {
    let mut findings = check::values(settings);
    if scope == Scope::Host {
        findings.extend(host::findings(settings));
    }
    findings
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
        note_places("", spanned.get_ref(), &mut places);
        let tables = toml::from_str(text).map_err(|error| vec![syntax_fault(text, &error)])?;
        Ok(Self { text, tables, places })
    }

    /// The settings of the good keys, and the faults of the others.
    fn settings(&self) -> (Settings, Vec<Fault>) {
        let mut faults = Vec::new();
        let mut top = self.tables.clone();
        let profiles = top.remove(PROFILE);
        let top = self.good_tables(&Level::top(), &top, &mut faults);
        let mut settings = self.typed(top.clone(), &mut faults);
        for (name, own) in self.named_profiles(profiles.as_ref(), &mut faults) {
            let own = self.good_profile(&name, own, &mut faults);
            let profile = self.typed(profile::merged(&top, own), &mut faults);
            settings.profiles.insert(name, profile);
        }
        (settings, faults)
    }

    /// Each key was good alone, and no key depends on another to be read.
    fn typed(&self, good: Table, faults: &mut Vec<Fault>) -> Settings {
        Value::Table(good).try_into().unwrap_or_else(|error: toml::de::Error| {
            faults.push(self.fault("", error.message().to_owned(), String::new()));
            Settings::default()
        })
    }

    /// The tables of a level with nothing but their good keys.
    fn good_tables(&self, level: &Level, tables: &Table, faults: &mut Vec<Fault>) -> Table {
        let mut good = Table::new();
        for (section, value) in tables {
            match (level.known.get(section), value) {
                (Some(known), Value::Table(keys)) => {
                    let keys = self.good_keys(level, (section, known), keys, faults);
                    good.insert(section.clone(), Value::Table(keys));
                }
                (Some(_), other) => {
                    let wrong = format!("{} where a table belongs", other.type_str());
                    let right = format!("write [{}]", level.dotted(section));
                    faults.push(self.fault(&level.dotted(section), wrong, right));
                }
                (None, _) => faults.push(self.unknown_section(level, section, value)),
            }
        }
        good
    }

    fn good_keys(
        &self,
        level: &Level,
        (section, known): (&str, &[String]),
        keys: &Table,
        faults: &mut Vec<Fault>,
    ) -> Table {
        let mut good = Table::new();
        for (key, value) in keys {
            let dotted = format!("{}.{key}", level.dotted(section));
            if !known.contains(key) {
                faults.push(self.fault(&dotted, "unknown key".to_owned(), level.hint(key, section)));
            } else if let Err(error) = alone(section, key, value) {
                faults.push(self.fault(&dotted, error.message().to_owned(), String::new()));
            } else {
                good.insert(key.clone(), value.clone());
            }
        }
        good
    }

    /// The tables of `[profile]` that have the name of a profile.
    fn named_profiles<'t>(
        &self,
        profiles: Option<&'t Value>,
        faults: &mut Vec<Fault>,
    ) -> Vec<(ProfileName, &'t Table)> {
        let not_a_table = |value: &Value| format!("{} where a table belongs", value.type_str());
        let right = "write [profile.NAME]";
        let tables = match profiles {
            None => return Vec::new(),
            Some(Value::Table(tables)) => tables,
            Some(other) => {
                faults.push(self.fault(PROFILE, not_a_table(other), right.to_owned()));
                return Vec::new();
            }
        };
        let mut named = Vec::new();
        for (name, value) in tables {
            let dotted = format!("{PROFILE}.{name}");
            match (value, ProfileName::new(name)) {
                (Value::Table(own), Ok(name)) => named.push((name, own)),
                (Value::Table(_), Err(invalid)) => {
                    faults.push(self.table_fault(&dotted, invalid.wrong, invalid.right));
                }
                (other, _) => faults.push(self.fault(&dotted, not_a_table(other), right.to_owned())),
            }
        }
        named
    }

    /// The good keys of a profile, its socket in the place where the top level has it.
    fn good_profile(&self, name: &ProfileName, own: &Table, faults: &mut Vec<Fault>) -> Table {
        let level = Level::profile(name);
        let mut tables = own.clone();
        let listen = tables.remove(LISTEN);
        let mut good = self.good_tables(&level, &tables, faults);
        let key = level.dotted(LISTEN);
        match listen.map(|value| alone("sandboxer", LISTEN, &value).map(|_| value)) {
            Some(Ok(value)) => {
                let socket = Table::from_iter([(LISTEN.to_owned(), value)]);
                good.insert("sandboxer".to_owned(), Value::Table(socket));
            }
            Some(Err(error)) => faults.push(self.fault(&key, error.message().to_owned(), String::new())),
            None => {
                let line = self.line(&format!("{PROFILE}.{name}"));
                let wrong = "missing".to_owned();
                let right =
                    format!("for example \"/run/bulkhead/{name}.sock\", for containerd's proxy_plugins");
                faults.push(Fault { line, key, value: String::new(), wrong, right });
            }
        }
        good
    }

    /// Everything impossible in the settings and, if asked for, on this host. What a profile has from the top level is said
    /// once, there.
    fn findings(&self, settings: &Settings, scope: Scope) -> Vec<Finding> {
        let mut all = findings_of(settings, scope);
        for (name, profile) in &settings.profiles {
            let own = findings_of(profile, scope).into_iter().filter_map(|finding| {
                let key = profile::key_of(name, &finding.key)?;
                let is_inherited = !self.places.contains_key(&key) && all.contains(&finding);
                (!is_inherited).then_some(Finding { key, ..finding })
            });
            let own: Vec<Finding> = own.collect();
            all.extend(own);
        }
        all.extend(profile::shared_sockets(settings));
        all
    }

    fn unknown_section(&self, level: &Level, section: &str, value: &Value) -> Fault {
        let dotted = level.dotted(section);
        if let Some(why) = profile::of_the_node(section).filter(|_| !level.prefix.is_empty()) {
            return self.table_fault(&dotted, "not of a profile", why.to_owned());
        }
        if !value.is_table() {
            return self.fault(&dotted, "unknown key".to_owned(), level.hint(section, ""));
        }
        let names = level.names();
        let right = nearest::nearest(section, names.iter().copied()).map_or_else(
            || format!("known are {}", names.join(", ")),
            |name| format!("did you mean [{}]?", level.dotted(name)),
        );
        self.table_fault(&dotted, "unknown table", right)
    }

    fn fault(&self, dotted: &str, wrong: String, right: String) -> Fault {
        let span = self.places.get(dotted);
        let value = span.and_then(|span| self.text.get(span.clone())).unwrap_or_default().to_owned();
        Fault { line: self.line(dotted), key: dotted.to_owned(), value, wrong, right }
    }

    /// Of a table as a whole, whose text would say nothing.
    fn table_fault(&self, dotted: &str, wrong: &str, right: String) -> Fault {
        Fault {
            line: self.line(dotted),
            key: dotted.to_owned(),
            value: String::new(),
            wrong: wrong.to_owned(),
            right,
        }
    }

    /// A value that a profile has from the top level is where it stands there.
    fn place(&self, finding: Finding) -> Fault {
        let Finding { key, value, wrong, right } = finding;
        let inherited = || key.strip_prefix("profile.").and_then(|rest| rest.split_once('.'));
        let line = self.line(&key).or_else(|| self.line(inherited()?.1));
        Fault { line, key, value, wrong, right }
    }

    fn line(&self, dotted: &str) -> Option<usize> {
        self.places.get(dotted).map(|span| line_of(self.text, span.start))
    }
}

/// Where tables are looked for: at the top, or in a profile.
struct Level {
    /// Before the name of each table: empty, or `profile.NAME.`.
    prefix: String,
    /// The tables there are, with their keys.
    known: BTreeMap<String, Vec<String>>,
}

impl Level {
    fn top() -> Self {
        Self { prefix: String::new(), known: known_keys() }
    }

    fn profile(name: &ProfileName) -> Self {
        let mut known = known_keys();
        known.retain(|table, _| profile::of_the_node(table).is_none());
        Self { prefix: format!("{PROFILE}.{name}."), known }
    }

    fn dotted(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// Every table there is.
    fn names(&self) -> Vec<&str> {
        let profile = self.prefix.is_empty().then_some(PROFILE);
        self.known.keys().map(String::as_str).chain(profile).collect()
    }

    /// What an unknown key may have meant: a key like it here, or the same key in another table.
    fn hint(&self, key: &str, section: &str) -> String {
        let here = self.known.get(section).into_iter().flatten().map(String::as_str);
        let own = (section.is_empty() && !self.prefix.is_empty()).then_some(LISTEN);
        if let Some(name) = nearest::nearest(key, here.clone().chain(own)) {
            return format!("did you mean {name}?");
        }
        match self.known.iter().find(|(_, keys)| keys.iter().any(|known| known == key)) {
            Some((elsewhere, _)) => format!("{key} belongs into [{}]", self.dotted(elsewhere)),
            None if section.is_empty() => format!("known are the tables {}", self.names().join(", ")),
            None => format!("[{}] has {}", self.dotted(section), here.collect::<Vec<_>>().join(", ")),
        }
    }
}

/// Notes where each value is, by its dotted key.
fn note_places(prefix: &str, table: &DeTable<'_>, places: &mut BTreeMap<String, Range<usize>>) {
    for (key, value) in table {
        let dotted = format!("{prefix}{}", key.get_ref());
        if let Some(below) = value.get_ref().as_table() {
            note_places(&format!("{dotted}."), below, places);
        }
        places.insert(dotted, value.span());
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
