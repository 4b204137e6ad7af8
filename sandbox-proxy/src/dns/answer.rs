//! One message in, one message out (RFC 1035, RFC 6891). No socket and no clock; every byte is hostile.

use std::net::{Ipv4Addr, Ipv6Addr};

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::opt::EdnsOption;
use hickory_proto::rr::rdata::{A, AAAA, HINFO, PTR, SOA};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};

use crate::defence;

/// Bytes of a message; stubs send some hundred at most. Bounds what parsing costs.
pub(super) const MAX_QUERY_BYTES: usize = 4096;
/// Bytes of the header (RFC 1035 §4.1.1).
const HEADER_BYTES: usize = 12;
/// What every client takes in a datagram, and what is sent in one at most: more may be cut into pieces on the way.
const DATAGRAM_BYTES: std::ops::RangeInclusive<u16> = 512..=1232;
/// Seconds for which a client may keep an address. Connections keep it in use for longer.
const TTL: u32 = 60;
/// Seconds for which it may keep a no. Short: rules can change while the sandbox runs.
const NEGATIVE_TTL: u32 = 5;
/// Extended error codes (RFC 8914 §4.19 and its option code).
const PROHIBITED: u16 = 18;
const EXTENDED_ERROR: u16 = 15;
/// Bytes of an extended error's text: a rule may be long.
const MAX_EXTRA_TEXT: usize = 200;

/// What a message came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// A datagram: long answers are cut, and say so.
    Datagram,
    /// A stream, each message with its length before it (RFC 7766).
    Stream,
}

/// What there is at a name.
#[derive(Debug)]
pub(super) enum Known {
    /// These addresses, and nothing else.
    Addresses(Option<Ipv4Addr>, Option<Ipv6Addr>),
    /// The name of an address.
    Name(String),
    /// The policy says no, by this rule.
    Denied(String),
    /// Nothing.
    Missing,
}

/// Answers a message; empty: with silence.
pub(super) fn respond(
    query: &[u8],
    transport: Transport,
    find: impl FnOnce(&Name, RecordType) -> Known,
) -> Vec<u8> {
    let Some(header) = query.first_chunk::<HEADER_BYTES>() else {
        return Vec::new();
    };
    let [id_high, id_low, flags, ..] = *header;
    // An answer to a response could be answered again, without end.
    if flags & 0x80 != 0 && defence::holds("dns-answers-no-answers") {
        return Vec::new();
    }
    let op_code = OpCode::from_u8((flags >> 3) & 0x0f);
    let refuse = |code| {
        let id = u16::from_be_bytes([id_high, id_low]);
        let mut response = Message::new(id, MessageType::Response, op_code);
        response.metadata.recursion_desired = flags & 1 != 0;
        response.metadata.response_code = code;
        response.to_vec().unwrap_or_default()
    };
    if op_code != OpCode::Query {
        return refuse(ResponseCode::NotImp);
    }
    if query.len() > MAX_QUERY_BYTES && defence::holds("dns-query-size") {
        return refuse(ResponseCode::FormErr);
    }
    let Ok(query) = Message::from_vec(query) else {
        return refuse(ResponseCode::FormErr);
    };
    // Nobody sends more, and no two servers agree on what it would mean (RFC 9619).
    let question = match &query.queries[..] {
        [question] => question,
        [question, ..] if !defence::holds("dns-one-question") => question,
        _ => return refuse(ResponseCode::FormErr),
    };
    let mut reply = Reply::to(&query, question);
    reply.fill(question, find);
    reply
        .encode(limit(&query, transport))
        .unwrap_or_else(|| refuse(ResponseCode::ServFail))
}

fn limit(query: &Message, transport: Transport) -> usize {
    usize::from(match transport {
        Transport::Stream => u16::MAX,
        Transport::Datagram => {
            let taken = query.edns.as_ref().map_or(0, Edns::max_payload);
            taken.clamp(*DATAGRAM_BYTES.start(), *DATAGRAM_BYTES.end())
        }
    })
}

/// An answer that is being made.
struct Reply {
    message: Message,
    /// Whether the client knows of extended errors: they are part of EDNS.
    takes_edns: bool,
    denied_by: Option<String>,
}

impl Reply {
    fn to(query: &Message, question: &Query) -> Self {
        let mut message = Message::new(query.metadata.id, MessageType::Response, OpCode::Query);
        message.metadata.recursion_desired = query.metadata.recursion_desired;
        message.metadata.checking_disabled = query.metadata.checking_disabled;
        message.metadata.recursion_available = true;
        // As it came, upper case and lower: clients compare it.
        message.add_query(question.clone());
        if let Some(asked) = &query.edns {
            let mut edns = Edns::new();
            edns.set_max_payload(*DATAGRAM_BYTES.end());
            edns.set_dnssec_ok(asked.flags().dnssec_ok);
            if asked.version() != 0 {
                message.metadata.response_code = ResponseCode::BADVERS;
                edns.set_rcode_high(ResponseCode::BADVERS.high());
            }
            message.set_edns(edns);
        }
        Self {
            takes_edns: query.edns.is_some(),
            message,
            denied_by: None,
        }
    }

    fn fill(&mut self, question: &Query, find: impl FnOnce(&Name, RecordType) -> Known) {
        if self.message.metadata.response_code != ResponseCode::NoError {
            return;
        }
        let (name, kind) = (&question.name, question.query_type);
        let is_transfer = matches!(u16::from(kind), 249..=254);
        if question.query_class != DNSClass::IN || is_transfer || kind == RecordType::OPT {
            self.message.metadata.response_code = ResponseCode::Refused;
            return;
        }
        let data = match (find(name, kind), kind) {
            (Known::Denied(rule), _) => {
                self.denied_by = Some(rule);
                self.message.metadata.response_code = ResponseCode::NXDomain;
                None
            }
            (Known::Missing, _) => {
                self.message.metadata.response_code = ResponseCode::NXDomain;
                None
            }
            (_, RecordType::ANY) => Some(RData::HINFO(HINFO::new("RFC8482".to_owned(), String::new()))),
            (Known::Addresses(Some(v4), _), RecordType::A) => Some(RData::A(A(v4))),
            (Known::Addresses(_, Some(v6)), RecordType::AAAA) => Some(RData::AAAA(AAAA(v6))),
            (Known::Name(name), RecordType::PTR) => Name::from_ascii(format!("{name}."))
                .ok()
                .map(|name| RData::PTR(PTR(name))),
            _ => None,
        };
        match data {
            Some(data) => {
                self.message
                    .add_answer(Record::from_rdata(name.clone(), TTL, data));
            }
            // Says for how long the no may be kept (RFC 2308).
            None => {
                let (server, person) = (
                    Name::from_ascii("gateway.sandbox.internal."),
                    Name::from_ascii("nobody.invalid."),
                );
                if let (Ok(server), Ok(person)) = (server, person) {
                    let soa = SOA::new(server, person, 1, 3600, 600, 86400, NEGATIVE_TTL);
                    let record = Record::from_rdata(Name::root(), NEGATIVE_TTL, RData::SOA(soa));
                    self.message.add_authority(record);
                }
            }
        }
    }

    /// The bytes, at most `limit` of them: without the rule's text, or cut, where there is no room.
    fn encode(mut self, limit: usize) -> Option<Vec<u8>> {
        if let (true, Some(rule)) = (self.takes_edns, self.denied_by.take()) {
            for text in [&rule[..rule.floor_char_boundary(MAX_EXTRA_TEXT)], ""] {
                let mut data = PROHIBITED.to_be_bytes().to_vec();
                data.extend_from_slice(text.as_bytes());
                let edns = self.message.edns.get_or_insert_default();
                edns.options_mut().remove(EXTENDED_ERROR.into());
                edns.options_mut()
                    .insert(EdnsOption::Unknown(EXTENDED_ERROR, data));
                let bytes = self.message.to_vec().ok()?;
                if bytes.len() <= limit {
                    return Some(bytes);
                }
            }
        }
        let bytes = self.message.to_vec().ok()?;
        if bytes.len() <= limit {
            return Some(bytes);
        }
        self.message.answers.clear();
        self.message.authorities.clear();
        self.message.metadata.truncation = true;
        self.message.to_vec().ok()
    }
}
