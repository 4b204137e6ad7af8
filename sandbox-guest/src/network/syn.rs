//! First segments of connections (`SYN`, RFC 9293 §3.5): read, repeated and refused.

use std::{
    io,
    net::{IpAddr, SocketAddr},
};

use etherparse::{
    IpHeaders, LaxPacketHeaders, NetHeaders, PacketBuilder, PacketBuilderStep, TcpHeader, TransportHeader,
};

/// Hops that a refusal may take: as many as the kernel gives what it sends.
const HOPS: u8 = 64;

/// A connection: no two have both ends in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Flow {
    from: (IpAddr, u16),
    to: (IpAddr, u16),
}

impl Flow {
    pub(super) fn new(from: SocketAddr, to: SocketAddr) -> Self {
        let end = |end: SocketAddr| (end.ip(), end.port());
        Self {
            from: end(from),
            to: end(to),
        }
    }

    /// What the program wants to reach.
    pub(super) fn to(&self) -> SocketAddr {
        self.to.into()
    }

    /// Where the program is.
    pub(super) fn from(&self) -> SocketAddr {
        self.from.into()
    }
}

/// The headers of a first segment; what data it brings (RFC 7413) the program sends again.
#[derive(Debug, PartialEq)]
pub(super) struct Syn {
    flow: Flow,
    ip: IpHeaders,
    tcp: TcpHeader,
}

impl Syn {
    /// Reads a packet whose end may be cut off. None is what is no first segment.
    pub(super) fn parse(packet: &[u8]) -> Option<Self> {
        let headers = LaxPacketHeaders::from_ip(packet).ok()?;
        let Some(TransportHeader::Tcp(tcp)) = headers.transport else {
            return None;
        };
        if !tcp.syn || tcp.ack || tcp.rst || tcp.fin {
            return None;
        }
        let (ip, from, to): (_, IpAddr, IpAddr) = match headers.net? {
            NetHeaders::Ipv4(header, rest) => {
                let (from, to) = (header.source.into(), header.destination.into());
                (IpHeaders::Ipv4(header, rest), from, to)
            }
            NetHeaders::Ipv6(header, rest) => {
                let (from, to) = (header.source.into(), header.destination.into());
                (IpHeaders::Ipv6(header, rest), from, to)
            }
            NetHeaders::Arp(_) => return None,
        };
        let flow = Flow {
            from: (from, tcp.source_port),
            to: (to, tcp.destination_port),
        };
        Some(Self { flow, ip, tcp })
    }

    pub(super) fn flow(&self) -> Flow {
        self.flow
    }

    /// The same once more. Its sums are right, which those of a packet on loopback need not be.
    pub(super) fn again(&self) -> io::Result<Vec<u8>> {
        written(PacketBuilder::ip(self.ip.clone()).tcp_header(self.tcp.clone()))
    }

    /// What a host answers on whose port nobody listens (RFC 9293 §3.10.7.1).
    pub(super) fn refusal(&self) -> io::Result<Vec<u8>> {
        let ip = match &self.ip {
            IpHeaders::Ipv4(header, _) => PacketBuilder::ipv4(header.destination, header.source, HOPS),
            IpHeaders::Ipv6(header, _) => PacketBuilder::ipv6(header.destination, header.source, HOPS),
        };
        let tcp = ip.tcp(self.tcp.destination_port, self.tcp.source_port, 0, 0);
        // The `SYN` itself counts as one.
        written(tcp.rst().ack(self.tcp.sequence_number.wrapping_add(1)))
    }
}

fn written(packet: PacketBuilderStep<TcpHeader>) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(packet.size(0));
    packet.write(&mut bytes, &[]).map_err(io::Error::other)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A segment from port 40000 to port 22, of either family.
    fn packets(build: impl Fn(PacketBuilderStep<TcpHeader>) -> Vec<u8>) -> [Vec<u8>; 2] {
        let v6 = |last| {
            let mut address = [0; 16];
            address[15] = last;
            address
        };
        [
            PacketBuilder::ipv4([127, 0, 0, 1], [198, 18, 0, 1], 64).tcp(40000, 22, u32::MAX, 1000),
            PacketBuilder::ipv6(v6(1), v6(2), 64).tcp(40000, 22, u32::MAX, 1000),
        ]
        .map(build)
    }

    fn bytes(packet: PacketBuilderStep<TcpHeader>, data: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        packet.write(&mut bytes, data).unwrap();
        bytes
    }

    #[test]
    fn what_it_brings_is_left_out_and_all_else_is_kept() {
        let with = |data: &'static [u8]| {
            let options = [2, 4, 0xff, 0xd7, 4, 2, 1, 1];
            packets(move |step| bytes(step.syn().options_raw(&options).unwrap(), data))
        };
        for (whole, early) in with(b"").into_iter().zip(with(&[7; 1000])) {
            assert_eq!(Syn::parse(&whole).unwrap().again().unwrap(), whole);
            let cut = &early[..whole.len()];
            assert_eq!(Syn::parse(cut).unwrap().again().unwrap(), whole);
        }
    }

    #[test]
    fn sums_are_made_where_there_were_none() {
        for whole in packets(|step| bytes(step.syn(), b"")) {
            let mut unsummed = whole.clone();
            unsummed[whole.len() - 4] ^= 0x55;
            assert_eq!(Syn::parse(&unsummed).unwrap().again().unwrap(), whole);
        }
    }

    #[test]
    fn a_refusal_comes_from_what_was_meant_and_answers_the_first_segment() {
        for packet in packets(|step| bytes(step.syn(), b"")) {
            let syn = Syn::parse(&packet).unwrap();
            let refusal = syn.refusal().unwrap();
            let headers = LaxPacketHeaders::from_ip(&refusal).unwrap();
            let Some(TransportHeader::Tcp(tcp)) = headers.transport else {
                panic!("{headers:?}");
            };
            assert!(tcp.rst && tcp.ack && !tcp.syn);
            assert_eq!((tcp.source_port, tcp.destination_port), (22, 40000));
            assert_eq!(tcp.acknowledgment_number, 0);
            let (from, to) = match headers.net.unwrap() {
                NetHeaders::Ipv4(ip, _) => (IpAddr::from(ip.source), IpAddr::from(ip.destination)),
                NetHeaders::Ipv6(ip, _) => (IpAddr::from(ip.source), IpAddr::from(ip.destination)),
                NetHeaders::Arp(_) => panic!(),
            };
            assert_eq!((from, to), (syn.flow().to().ip(), syn.flow().from().ip()));
        }
    }

    #[test]
    fn other_segments_and_broken_ones_are_nothing() {
        let others = [
            packets(|step| bytes(step, b"")),
            packets(|step| bytes(step.syn().ack(1), b"")),
            packets(|step| bytes(step.syn().rst(), b"")),
            packets(|step| bytes(step.syn().fin(), b"")),
        ];
        for other in others.concat() {
            assert_eq!(Syn::parse(&other), None);
        }
        for syn in packets(|step| bytes(step.syn(), b"")) {
            assert!(Syn::parse(&syn).is_some());
            for end in 0..syn.len() {
                assert_eq!(Syn::parse(&syn[..end]), None, "{end}");
            }
        }
    }
}
