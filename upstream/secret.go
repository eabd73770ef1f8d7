package upstream

import (
	"crypto/subtle"
	"fmt"
	"log/slog"
	"slices"
	"time"
)

// SecretName identifies a secret: by its name, 1 to 192 characters of [A-Za-z0-9_/+=.@-], or by
// its ARN, acs:kms:REGION:ACCOUNT:secret/NAME. The two are different secrets to everybody but the
// backend, which alone knows what its own account is; see [OfAccount].
type SecretName string

// VersionID identifies a version inside its secret. The writer chooses it: 1 to 64
// characters of the [SecretName] alphabet.
type VersionID string

// VersionStage is a label that marks exactly one version of a secret: 1 to 64 characters of
// the [SecretName] alphabet.
type VersionStage string

// The built-in labels. They can be moved but never removed.
const (
	ACSCurrent  VersionStage = "ACSCurrent"
	ACSPrevious VersionStage = "ACSPrevious"
)

// BuiltIn reports whether s is one of the labels that every secret has and nobody can remove.
func (s VersionStage) BuiltIn() bool { return s == ACSCurrent || s == ACSPrevious }

// The values of SecretDataType. Binary is only a marker: on the wire SecretData is text in
// both cases. The writer encodes, by convention with base64; see [SecretValue.RevealBytes].
const (
	DataTypeText   = "text"
	DataTypeBinary = "binary"
)

// SecretTypeGeneric is the type of a secret whose versions its owner writes. The service
// knows managed types besides (Rds, Redis, RAMCredentials, ECS, PolarDB).
const SecretTypeGeneric = "Generic"

// redacted is what every formatting of [SecretData] prints.
const redacted = "[secret]"

// SecretData holds the bytes of one secret version and hides them from every printer:
// String, Format, LogValue and MarshalJSON give a placeholder.
//
// The zero value is empty. Copies share the bytes.
type SecretData struct {
	// fmt calls no methods on unexported fields of other structs. It follows one pointer
	// there, at most; behind two it prints an address.
	bytes **[]byte
}

// NewSecretData takes the bytes of b over: it moves them to memory that is overwritten when
// nobody holds them any more, see [Erasable], and overwrites b.
func NewSecretData(b []byte) SecretData {
	own := Erasable(b)
	p := &own
	return SecretData{bytes: &p}
}

// Reveal returns the bytes themselves, not a copy. The caller must not modify them and must
// not let them reach a log, an error, a metric or a URL.
func (d SecretData) Reveal() []byte {
	if d.bytes == nil {
		return nil
	}
	b := **d.bytes
	return b[:len(b):len(b)]
}

// Size returns how many bytes of memory the data takes.
func (d SecretData) Size() int {
	if d.bytes == nil {
		return 0
	}
	return cap(**d.bytes)
}

// Len returns the number of bytes.
func (d SecretData) Len() int { return len(d.Reveal()) }

// Equal reports whether both hold the same bytes, in time that depends only on their length.
func (d SecretData) Equal(other SecretData) bool {
	return subtle.ConstantTimeCompare(d.Reveal(), other.Reveal()) == 1
}

// String returns a placeholder.
func (d SecretData) String() string { return redacted }

// GoString returns a placeholder.
func (d SecretData) GoString() string { return redacted }

// Format writes a placeholder for every verb and flag.
func (d SecretData) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(redacted)) }

// LogValue returns a placeholder.
func (d SecretData) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalJSON returns a placeholder. Encoders that mean to give the value out call Reveal.
func (d SecretData) MarshalJSON() ([]byte, error) { return []byte(`"` + redacted + `"`), nil }

// MarshalText returns a placeholder, for YAML and the other text encoders.
func (d SecretData) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// SecretValue is one version of a secret with its bytes, as GetSecretValue answers it.
// It is read-only once returned; holders share it without copying.
type SecretValue struct {
	SecretName     SecretName // by name or ARN, as it was asked for
	VersionID      VersionID
	VersionStages  []VersionStage // labels of this version when it was read, sorted
	SecretData     SecretData
	SecretDataType string // DataTypeText or DataTypeBinary
	SecretType     string // SecretTypeGeneric or a managed type
	CreateTime     time.Time
	RequestID      string // of the read that produced this value

	// Managed is set for managed types only.
	Managed *ManagedSecret
}

// CodeInvalidAnswer is the code of an answer that is no value.
const CodeInvalidAnswer = "InvalidAnswer"

// Answers returns nil when v is a value of ref. Otherwise its error says what is wrong: there is
// no data, or v is another secret or version than ref means, or has labels and not that of ref.
// An answer without any labels is believed.
func (v *SecretValue) Answers(ref SecretRef) error {
	ref = ref.WithDefaults()
	why := ""
	switch {
	case v.SecretName != ref.SecretName && v.SecretName != ref.SecretName.Name():
		why = "it is about another secret"
	case v.VersionID == "":
		why = "it names no version"
	case ref.VersionID != "" && v.VersionID != ref.VersionID:
		why = "it is about another version"
	case ref.VersionStage != "" && len(v.VersionStages) > 0 && !slices.Contains(v.VersionStages, ref.VersionStage):
		why = "its version does not have the label " + string(ref.VersionStage)
	case v.SecretData.Len() == 0:
		why = "it has no SecretData"
	default:
		return nil
	}
	return &Error{Ref: ref, Err: ErrUnavailable, Code: CodeInvalidAnswer, Message: "the answer is not the value that was asked for: " + why}
}

// ManagedSecret is what the service adds to secrets that it rotates itself. The texts are
// passed on as the service gave them.
type ManagedSecret struct {
	AutomaticRotation string `json:",omitempty"` // Enabled, Disabled or Invalid
	RotationInterval  string `json:",omitempty"` // seconds and unit, such as 604800s
	NextRotationDate  string `json:",omitempty"`
	LastRotationDate  string `json:",omitempty"`
	ExtendedConfig    string `json:",omitempty"` // JSON, only when asked for
}

// Tag is one key and value attached to a secret.
type Tag struct {
	Key   string
	Value string
}

// SecretMetadata describes a secret without its versions, labels or value.
type SecretMetadata struct {
	ARN             string
	SecretName      SecretName
	SecretType      string
	Description     string
	EncryptionKeyID string // as the creator named it; empty where none was named
	DKMSInstanceID  string // the KMS instance; empty where it is in none
	CreateTime      time.Time
	UpdateTime      time.Time

	// PlannedDeleteTime is when a deleted secret goes for good; zero while it is live.
	PlannedDeleteTime time.Time

	// Tags is filled only when the request asked for tags.
	Tags []Tag

	// Managed is set for managed types only.
	Managed *ManagedSecret
}

// SecretVersion is one version of a secret without its bytes.
type SecretVersion struct {
	VersionID     VersionID `json:"VersionId"`
	CreateTime    time.Time
	VersionStages []VersionStage `json:",omitempty"` // sorted; empty for a deprecated version
}
