package builtin

import (
	"encoding/binary"
	"errors"
	"strings"

	"secretagent/upstream"
)

// record is everything about a secret but its values. On disk it is sealed (see seal.go), and
// inside the seal it looks like this:
//
//	byte     format, 1 or 2
//	8 bytes  created       Unix seconds
//	8 bytes  updated       Unix seconds
//	8 bytes  plannedDelete Unix seconds, 0 while the secret is live
//	4 bytes  key           the key that seals the secret, 0 for the primary one
//	text     description
//	count    tags      × { text key, text value }                sorted by key
//	count    versions  × { text id, 8 bytes created,             oldest first
//	                       4 bytes key, byte binary }
//	count    labels    × { text stage, count index of version }  sorted by stage
//	text     encryptionKeyID                                     in format 2 only, as what follows
//	text     dkmsInstanceID
//	text     policy
//
// In format 1, which was the only one, the encryptionKeyID is the key, or nothing, and the others are
// empty. It is written where it tells the same, so that older programs can read what is no news to
// them.
//
// Numbers of fixed size are big-endian. A count is a uvarint in its shortest form; a text is
// a count of bytes and the bytes. There is exactly one encoding of a record, so that a decoder
// can insist on it.
type record struct {
	versionSet
	created       int64
	updated       int64
	plannedDelete int64
	key           uint32
	description   string

	encryptionKeyID string // what the creator named, as it was named; empty where none was
	dkmsInstanceID  string // what the creator named
	policy          string // empty: the default one

	tags []upstream.Tag // sorted by key, each key once

	sealedBy uint32 // the key that the record was read with; not part of it
}

// pending reports whether the secret is scheduled for deletion.
func (r *record) pending() bool { return r.plannedDelete != 0 }

// gone reports whether its window has passed: it is then as good as deleted.
func (r *record) gone(now int64) bool { return r.pending() && now >= r.plannedDelete }

// encodeRecord appends the encoding of r to b.
func encodeRecord(b []byte, r *record) []byte {
	text := func(s string) {
		b = binary.AppendUvarint(b, uint64(len(s)))
		b = append(b, s...)
	}
	b = append(b, r.format())
	b = binary.BigEndian.AppendUint64(b, uint64(r.created))
	b = binary.BigEndian.AppendUint64(b, uint64(r.updated))
	b = binary.BigEndian.AppendUint64(b, uint64(r.plannedDelete))
	b = binary.BigEndian.AppendUint32(b, r.key)
	text(r.description)
	b = binary.AppendUvarint(b, uint64(len(r.tags)))
	for _, tag := range r.tags {
		text(tag.Key)
		text(tag.Value)
	}
	b = binary.AppendUvarint(b, uint64(len(r.versions)))
	for i := range r.versions {
		v := &r.versions[i]
		text(string(v.id))
		b = binary.BigEndian.AppendUint64(b, uint64(v.created))
		b = binary.BigEndian.AppendUint32(b, v.keyID)
		if v.binary {
			b = append(b, 1)
		} else {
			b = append(b, 0)
		}
	}
	b = binary.AppendUvarint(b, uint64(len(r.labels)))
	for _, l := range r.labels {
		text(string(l.stage))
		b = binary.AppendUvarint(b, uint64(r.find(l.holder)))
	}
	if r.format() == 2 {
		text(r.encryptionKeyID)
		text(r.dkmsInstanceID)
		text(r.policy)
	}
	return b
}

// format returns the format that the record is written in.
func (r *record) format() byte {
	if r.encryptionKeyID == nameOfKey(r.key) && r.dkmsInstanceID == "" && r.policy == "" {
		return 1
	}
	return 2
}

// nameOfKey returns how a creator names a key of the keyring: not at all, or by its id.
func nameOfKey(key uint32) string {
	if key == 0 {
		return ""
	}
	return formatKeyID(key)
}

var errRecord = errors.New("not a record of a secret")

// decodeRecord reads what [encodeRecord] wrote and nothing else.
func decodeRecord(b []byte) (*record, error) {
	d := decoder{rest: string(b)} // one copy that all texts of the record share
	r := &record{}
	format := d.byte()
	r.created = int64(d.uint64())
	r.updated = int64(d.uint64())
	r.plannedDelete = int64(d.uint64())
	r.key = d.uint32()
	r.encryptionKeyID = nameOfKey(r.key)
	r.description = d.text()
	if n := d.count(2); n > 0 {
		r.tags = make([]upstream.Tag, n)
		for i := range r.tags {
			r.tags[i] = upstream.Tag{Key: d.text(), Value: d.text()}
			if i > 0 && r.tags[i-1].Key >= r.tags[i].Key {
				return nil, errRecord
			}
		}
	}
	if n := d.count(14); n > 0 {
		r.versions = make([]version, n)
		for i := range r.versions {
			v := version{id: upstream.VersionID(d.text()), created: int64(d.uint64()), keyID: d.uint32()}
			flag := d.byte()
			if v.id == "" || flag > 1 || r.find(v.id) >= 0 {
				return nil, errRecord
			}
			v.binary = flag == 1
			r.versions[i] = v
		}
	}
	if n := d.count(2); n > 0 {
		r.labels = make([]label, n)
		for i := range r.labels {
			stage, index := upstream.VersionStage(d.text()), d.uvarint()
			if index >= uint64(len(r.versions)) || i > 0 && r.labels[i-1].stage >= stage {
				return nil, errRecord
			}
			r.labels[i] = label{stage, r.versions[index].id}
		}
	}
	if format == 2 {
		r.encryptionKeyID, r.dkmsInstanceID, r.policy = d.text(), d.text(), d.text()
	}
	if d.failed || d.rest != "" || r.format() != format {
		return nil, errRecord
	}
	return r, nil
}

// decoder takes values off the front of rest. After a failure it returns zero values.
type decoder struct {
	rest   string
	failed bool
}

// take returns the next n bytes; on failure n zeros.
func (d *decoder) take(n int) string {
	if n > len(d.rest) {
		d.failed, d.rest = true, ""
		return string(make([]byte, n))
	}
	s := d.rest[:n]
	d.rest = d.rest[n:]
	return s
}

func (d *decoder) byte() byte     { return d.take(1)[0] }
func (d *decoder) uint32() uint32 { return binary.BigEndian.Uint32([]byte(d.take(4))) }
func (d *decoder) uint64() uint64 { return binary.BigEndian.Uint64([]byte(d.take(8))) }

// uvarint reads a uvarint in its shortest form.
func (d *decoder) uvarint() uint64 {
	n, size := binary.Uvarint([]byte(d.rest[:min(len(d.rest), binary.MaxVarintLen64)]))
	if size <= 0 || size > 1 && n>>(7*(size-1)) == 0 { // cut short, or a shorter form exists
		d.failed, d.rest = true, ""
		return 0
	}
	d.take(size)
	return n
}

// count reads the number of elements of at least size bytes that follow.
func (d *decoder) count(size int) int {
	n := d.uvarint()
	if n > uint64(len(d.rest)/size) {
		d.failed, d.rest = true, ""
		return 0
	}
	return int(n)
}

func (d *decoder) text() string { return d.take(d.count(1)) }

// detached returns a copy of a text of a record, for holders that outlive the record: the
// texts of a record share one allocation, which a single kept one would keep whole.
func detached[T ~string](s T) T { return T(strings.Clone(string(s))) }
