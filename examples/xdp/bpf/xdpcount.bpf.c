// SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
/* Counts the packets of an interface by protocol, reports echo requests, passes every packet. */
#include "vmlinux.h"
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include "ring.bpf.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/*
 * What pybootstrap's vmlinux.h lacks. Nothing here needs CO-RE, because standards define packets
 * and struct xdp_md is ABI. linux/ip.h and the like would include asm/types.h, which clang does not
 * find when it compiles for BPF.
 */
enum { XDP_PASS = 2, ECHO_REQUEST = 8, ECHO_REQUEST_V6 = 128 };
enum { ETH_IPV4 = 0x800, ETH_VLAN = 0x8100, ETH_IPV6 = 0x86dd, ETH_QINQ = 0x88a8 };
enum { HOP_BY_HOP = 0, ICMP = 1, ROUTING = 43, FRAGMENT = 44, ICMPV6 = 58, OPTIONS = 60 };

struct xdp_md {
	u32 data, data_end;
};

struct ethernet {
	u8 target[6], source[6];
	u16 type;
};

struct ipv4 {
	u8 version_words, service; /* 4 bits each: version, and size of this header in words */
	u16 length, id, fragment; /* the offset is in the low 13 bits */
	u8 hops, protocol;
	u16 checksum;
	u32 addresses[2];
};

struct ipv6 {
	u8 version_class, flow[3];
	u16 length; /* of the payload */
	u8 next, hops;
	u32 addresses[8];
};

struct extension {
	u8 next, length; /* in units of 8 bytes, not counting the first 8 */
	u16 fragment; /* the offset is in the high 13 bits */
	u32 data;
};

struct icmp {
	u8 type, code;
	u16 checksum, id, sequence;
};

/* Indices of counts; IPV4 and IPV6 plus a protocol number. NAMES in Python has the same order. */
enum { IPV4 = 0, IPV6 = 256, OTHER = 512, SLOTS, MAX_TAGS = 2, MAX_EXTENSIONS = 8 };

struct count {
	u64 packets, bytes;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, SLOTS);
	__type(key, u32);
	__type(value, struct count);
} counts SEC(".maps");

struct echo {
	struct record_header header;
	u8 addresses[32]; /* source and target; IPv4 uses the first 8 bytes */
	u32 version, id, sequence, length; /* length: of the ICMP message in this packet */
};

RECORD(1, echo);

struct cursor {
	void *at, *end;
};

/* Returns the next size bytes, or NULL if the packet is shorter. */
static __always_inline void *take(struct cursor *c, u32 size)
{
	void *bytes = c->at;

	if (bytes + size > c->end)
		return NULL;
	c->at = bytes + size;
	return bytes;
}

static __always_inline void report_echo(struct cursor *c, int version, void *addresses, int length)
{
	struct icmp *icmp = take(c, sizeof(*icmp));
	struct echo *r;

	if (!icmp || icmp->type != (version == 4 ? ECHO_REQUEST : ECHO_REQUEST_V6) ||
	    length < (int)sizeof(*icmp))
		return;
	r = ring_reserve(sizeof(*r));
	if (!r)
		return;
	__builtin_memset(r->addresses, 0, sizeof(r->addresses));
	__builtin_memcpy(r->addresses, addresses, version == 4 ? 8 : 32);
	r->version = version;
	r->id = bpf_ntohs(icmp->id);
	r->sequence = bpf_ntohs(icmp->sequence);
	r->length = length;
	ring_submit(&r->header, sizeof(*r), KIND_echo, 0, bpf_ktime_get_boot_ns());
}

static __always_inline u32 read_ipv4(struct cursor *c)
{
	struct ipv4 *ip = take(c, sizeof(*ip));
	u32 size = ip ? (ip->version_words & 15) * 4 : 0;

	if (size < sizeof(*ip) || ip->version_words >> 4 != 4)
		return OTHER;
	c->at += size - sizeof(*ip);
	if (ip->protocol == ICMP && !(ip->fragment & bpf_htons(0x1fff)))
		report_echo(c, 4, ip->addresses, bpf_ntohs(ip->length) - size);
	return IPV4 + ip->protocol;
}

static __always_inline u32 read_ipv6(struct cursor *c)
{
	struct ipv6 *ip = take(c, sizeof(*ip));
	u8 next;

	if (!ip || ip->version_class >> 4 != 6)
		return OTHER;
	next = ip->next;
	for (int i = 0; i < MAX_EXTENSIONS; i++) {
		struct extension *header;

		if (next != HOP_BY_HOP && next != ROUTING && next != FRAGMENT && next != OPTIONS)
			break;
		header = take(c, sizeof(*header));
		if (!header)
			break;
		if (next != FRAGMENT)
			c->at += header->length * 8;
		else if (header->fragment & bpf_htons(0xfff8)) /* a later fragment has no headers */
			return IPV6 + header->next;
		next = header->next;
	}
	if (next == ICMPV6)
		report_echo(c, 6, ip->addresses,
			    bpf_ntohs(ip->length) - (c->at - (void *)(ip + 1)));
	return IPV6 + next;
}

SEC("xdp")
int on_packet(struct xdp_md *ctx)
{
	struct cursor c = {(void *)(long)ctx->data, (void *)(long)ctx->data_end};
	u64 bytes = c.end - c.at;
	struct ethernet *ethernet = take(&c, sizeof(*ethernet));
	u16 type = ethernet ? bpf_ntohs(ethernet->type) : 0;
	struct count *count;
	u32 slot = OTHER;

	for (int i = 0; i < MAX_TAGS && (type == ETH_VLAN || type == ETH_QINQ); i++) {
		u16 *tag = take(&c, 2 * sizeof(*tag));

		type = tag ? bpf_ntohs(tag[1]) : 0;
	}
	if (type == ETH_IPV4)
		slot = read_ipv4(&c);
	else if (type == ETH_IPV6)
		slot = read_ipv6(&c);
	count = bpf_map_lookup_elem(&counts, &slot);
	if (count) { /* this CPU's, so no atomic operation */
		count->packets++;
		count->bytes += bytes;
	}
	return XDP_PASS;
}
