//! What is said of a data set or a model, signed by who made it.
//!
//! A record is JSON beside its file. What is signed is its canonical text without the signature, behind the purpose
//! [`PURPOSE`], by Ed25519: so that a record cannot be moved to another file, changed, or shown as another protocol's.

use makai_erasure::NodeId;
use makai_raft::facts::accounts::Hash;
use makai_raft::signatures::{is_signed_by_node, node_message};
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use serde::{Deserialize, Serialize};

use super::quality::{Counts, Scores, scores};

/// Purpose of the signature.
pub const PURPOSE: &str = "contribution/1";
/// Version of the record.
pub const FORMAT: u32 = 1;
/// A longer text is no record.
pub const RECORD_BYTES_MAX: usize = 256 * 1024;
const TEXT_BYTES_MAX: usize = 1024;
const PARTS_MAX: usize = 1024;

/// What a file is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum Artefact {
    Model {
        /// The model that it was made from.
        parent: Option<Hash>,
        /// What it was trained with: hashes of data sets.
        data: Vec<Hash>,
        /// The job that trained it.
        training_job: Option<u64>,
    },
    Dataset {
        /// What was counted, and the scores that follow from it.
        counts: Counts,
        scores: Scores,
    },
}

/// Everything that is signed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Statement {
    pub format: u32,
    pub name: String,
    /// An SPDX expression.
    pub licence: String,
    /// Of all bytes of the file.
    pub blake3: Hash,
    pub size_bytes: u64,
    pub made_at_ms: u64,
    pub artefact: Artefact,
    /// Who made it: an Ed25519 key.
    pub maker: NodeId,
}

/// A statement with its signature.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    pub statement: Statement,
    /// 128 hex digits.
    pub signature: String,
}

/// Why a record, or a file beside it, is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    #[error("this is no record: {0}")]
    Malformed(String),
    #[error("the signature is not of {0} over this record: it was changed, or never signed")]
    Signature(NodeId),
    #[error("the scores are not what follows from the counts")]
    Scores,
    #[error("the file is not the one that was signed: BLAKE3 {found} and {size_bytes} bytes, not {signed}")]
    OtherFile { found: Hash, size_bytes: u64, signed: Hash },
}

impl Statement {
    /// JSON without blanks, fields in their order.
    #[must_use]
    pub fn canonical(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    fn check(&self) -> Result<(), RecordError> {
        let fault = |why: &str| Err(RecordError::Malformed(why.to_owned()));
        if self.format != FORMAT {
            return fault("its format is another; use a release that knows it");
        }
        if self.name.is_empty() || self.name.len() > TEXT_BYTES_MAX || self.licence.len() > TEXT_BYTES_MAX {
            return fault("a name has 1 to 1024 bytes, a licence at most as many");
        }
        match &self.artefact {
            Artefact::Model { data, .. } if data.len() > PARTS_MAX => fault("it names too many data sets"),
            Artefact::Dataset { counts, scores: said } if scores(counts) != *said => Err(RecordError::Scores),
            _ => Ok(()),
        }
    }
}

impl Record {
    /// Signs what is said, as the key's owner.
    ///
    /// # Errors
    /// What is said contradicts itself, or names another maker.
    pub fn sign(statement: Statement, key: &Ed25519KeyPair) -> Result<Self, RecordError> {
        statement.check()?;
        if key.public_key().as_ref() != statement.maker.0 {
            return Err(RecordError::Malformed("it names another maker".into()));
        }
        let signature = key.sign(&node_message(PURPOSE, &statement.canonical()));
        Ok(Self { statement, signature: hex::encode(signature.as_ref()) })
    }

    /// Reads a record and checks all that can be without its file. Any bytes may be given.
    ///
    /// # Errors
    /// [`RecordError`]
    pub fn parse(bytes: &[u8]) -> Result<Self, RecordError> {
        if bytes.len() > RECORD_BYTES_MAX {
            return Err(RecordError::Malformed(format!("it has more than {RECORD_BYTES_MAX} bytes")));
        }
        let record: Self =
            serde_json::from_slice(bytes).map_err(|error| RecordError::Malformed(error.to_string()))?;
        record.statement.check()?;
        let signature = hex::decode(&record.signature).unwrap_or_default();
        let (maker, message) = (record.statement.maker, record.statement.canonical());
        if !is_signed_by_node(maker, PURPOSE, &message, &signature) {
            return Err(RecordError::Signature(maker));
        }
        Ok(record)
    }

    /// Whether a file is the one of this record.
    ///
    /// # Errors
    /// [`RecordError::OtherFile`]
    pub fn check_file(&self, found: Hash, size_bytes: u64) -> Result<(), RecordError> {
        let signed = self.statement.blake3;
        if found == signed && size_bytes == self.statement.size_bytes {
            Ok(())
        } else {
            Err(RecordError::OtherFile { found, size_bytes, signed })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn record(artefact: Artefact) -> Record {
        let key = Ed25519KeyPair::from_seed_unchecked(&[7; 32]).unwrap();
        let statement = Statement {
            format: FORMAT,
            name: "weather".into(),
            licence: "CC-BY-4.0".into(),
            blake3: Hash(*blake3::hash(b"file").as_bytes()),
            size_bytes: 4,
            made_at_ms: 1_000,
            artefact,
            maker: NodeId(key.public_key().as_ref().try_into().unwrap()),
        };
        Record::sign(statement, &key).unwrap()
    }

    fn dataset() -> Record {
        let counts = Counts { required_cells: 10, filled_cells: 9, ..Counts::default() };
        record(Artefact::Dataset { counts, scores: scores(&counts) })
    }

    fn model() -> Record {
        record(Artefact::Model { parent: None, data: vec![Hash([1; 32])], training_job: Some(7) })
    }

    #[test]
    fn records_are_read_back_and_fit_their_file_alone() {
        for record in [dataset(), model()] {
            let read = Record::parse(&serde_json::to_vec(&record).unwrap()).unwrap();
            assert_eq!(read, record);
            assert_eq!(read.check_file(Hash(*blake3::hash(b"file").as_bytes()), 4), Ok(()));
            assert!(read.check_file(Hash(*blake3::hash(b"filf").as_bytes()), 4).is_err());
            assert!(read.check_file(Hash(*blake3::hash(b"file").as_bytes()), 5).is_err());
        }
    }

    /// Scores better than the counts give are found, whoever signs them.
    #[test]
    fn scores_are_computed_again() {
        let Artefact::Dataset { counts, mut scores } = dataset().statement.artefact else { unreachable!() };
        scores.quality_ppm += 1;
        let mut lie = dataset();
        lie.statement.artefact = Artefact::Dataset { counts, scores };
        let key = Ed25519KeyPair::from_seed_unchecked(&[7; 32]).unwrap();
        assert_eq!(Record::sign(lie.statement, &key), Err(RecordError::Scores));
    }

    proptest! {
        /// Whatever byte of a record is changed, it is refused, or says the same.
        #[test]
        fn a_changed_record_is_refused(at: prop::sample::Index, bit in 0u8..8) {
            let good = model();
            let mut bytes = serde_json::to_vec(&good).unwrap();
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            // Hex digits have two spellings, which say the same.
            prop_assert!(Record::parse(&bytes).map_or(true, |read| read.statement == good.statement));
        }
    }
}
