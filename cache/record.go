package cache

import (
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"time"

	"github.com/tink-crypto/tink-go/v2/tink"

	"secretagent/upstream"
)

// recordContext separates our ciphertexts from everything else that the keyring seals.
const recordContext = "secretagent sealed cache record 2\x00"

// recordID is the key of a record in the file. It is random, so that the file does not tell
// which secrets it holds.
type recordID [16]byte

func newRecordID() (id recordID) {
	_, _ = rand.Read(id[:]) // never fails
	return id
}

// record is one value as it is sealed. In the file it is
//
//	random id → AEAD(length of the JSON, JSON of record, secret data; associated data: recordContext, id)
//
// The data stay out of the JSON, whose encoder keeps copies in buffers that cannot be
// overwritten.
type record struct {
	Ref       upstream.SecretRef
	FetchedAt time.Time // wall clock

	// The interval in which the value is known to have been the same; see entry. Ticks go
	// on counting from one run to the next.
	Since, Confirmed uint64

	Value upstream.SecretValue // its data encode as a placeholder
}

func (r *record) seal(key tink.AEAD, id recordID) ([]byte, error) {
	meta := *r
	meta.Value.SecretData = upstream.SecretData{}
	text, err := json.Marshal(&meta)
	if err != nil {
		return nil, err
	}
	data := r.Value.SecretData.Reveal()
	plain := make([]byte, 0, 4+len(text)+len(data))
	plain = binary.BigEndian.AppendUint32(plain, uint32(len(text)))
	plain = append(append(plain, text...), data...)
	defer clear(plain)
	return key.Encrypt(plain, associatedData(id))
}

func openRecord(key tink.AEAD, id, sealed []byte) (*record, error) {
	if len(id) != len(recordID{}) {
		return nil, errors.New("no record id")
	}
	plain, err := key.Decrypt(sealed, associatedData(recordID(id)))
	if err != nil {
		return nil, err
	}
	defer clear(plain)
	if len(plain) < 4 {
		return nil, errors.New("not a record")
	}
	n, rest := uint64(binary.BigEndian.Uint32(plain)), plain[4:]
	if n > uint64(len(rest)) {
		return nil, errors.New("not a record")
	}
	var r struct {
		record
		Value struct {
			upstream.SecretValue
			SecretData any // outweighs the embedded one, which does not decode
		}
	}
	if json.Unmarshal(rest[:n], &r) != nil {
		return nil, errors.New("not a record")
	}
	r.record.Value = r.Value.SecretValue
	r.record.Value.SecretData = upstream.NewSecretData(rest[n:])
	return &r.record, nil
}

func associatedData(id recordID) []byte {
	return append([]byte(recordContext), id[:]...)
}

// recordOf returns the record of e's value. The caller holds the shard.
func recordOf(e *entry) *record {
	return &record{
		Ref: e.ref, FetchedAt: e.fetchedAt.Round(0).UTC(), Since: e.since, Confirmed: e.confirmed,
		Value: *e.value,
	}
}
