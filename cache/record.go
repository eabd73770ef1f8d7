package cache

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"time"

	"github.com/tink-crypto/tink-go/v2/tink"

	"secretagent/upstream"
)

// recordContext separates our ciphertexts from everything else that the keyring seals.
const recordContext = "secretagent sealed cache record 1\x00"

// recordID is the key of a record in the file. It is random, so that the file does not tell
// which secrets it holds.
type recordID [16]byte

func newRecordID() (id recordID) {
	_, _ = rand.Read(id[:]) // never fails
	return id
}

// record is one value as it is sealed. In the file it is
//
//	random id → AEAD(JSON of record; associated data: recordContext, id)
type record struct {
	Ref       upstream.SecretRef
	FetchedAt time.Time // wall clock

	// The interval in which the value is known to have been the same; see entry. Ticks go
	// on counting from one run to the next.
	Since, Confirmed uint64

	Value value
}

// value is a SecretValue whose data does not hide from the encoder.
type value struct {
	upstream.SecretValue
	SecretData []byte // outweighs the embedded one
}

func (r *record) seal(key tink.AEAD, id recordID) ([]byte, error) {
	plain, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
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
	var r record
	if err := json.Unmarshal(plain, &r); err != nil {
		return nil, errors.New("not a record") // the error could quote it
	}
	return &r, nil
}

func associatedData(id recordID) []byte {
	return append([]byte(recordContext), id[:]...)
}

// recordOf returns the record of e's value. The caller holds the shard.
func recordOf(e *entry) *record {
	return &record{
		Ref: e.ref, FetchedAt: e.fetchedAt.Round(0).UTC(), Since: e.since, Confirmed: e.confirmed,
		Value: value{SecretValue: *e.value, SecretData: e.value.SecretData.Reveal()},
	}
}

// secretValue returns the value of r.
func (r *record) secretValue() *upstream.SecretValue {
	v := r.Value.SecretValue
	v.SecretData = upstream.NewSecretData(r.Value.SecretData)
	return &v
}
