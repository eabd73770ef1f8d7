package upstream

import (
	"fmt"
	"regexp"
	"strings"
)

// Sizes of the identifiers. Source: "Limits" of the KMS API; the length of a label is not
// documented and taken to be that of a version id.
const (
	MaxSecretNameLen   = 192
	MaxVersionIDLen    = 64
	MaxVersionStageLen = 64
)

// SecretRef says which version of which secret is meant. It is comparable and serves as a
// map key.
type SecretRef struct {
	SecretName   SecretName
	VersionID    VersionID    // empty: whatever VersionStage marks
	VersionStage VersionStage // empty: ACSCurrent, unless VersionID is given

	// Computed says that a part of it was made from values, and so may be a secret itself:
	// String does not show it, and nobody else may. It is no part of what is meant.
	Computed bool `json:",omitzero"`
}

// ParseSecretRef reads "name" or "name:Label", the form that HTTP, CLI, templates and
// configuration share. The name may be an ARN, acs:kms:REGION:ACCOUNT:secret/NAME, and stays
// one: two accounts can have secrets of one name. Only an ARN with neither region nor account,
// acs:kms:::secret/NAME, means the same as its name. A version id is always a separate argument.
//
// It returns an [*Error] that wraps [ErrInvalidParameter] and names the part at fault.
func ParseSecretRef(s string) (SecretRef, error) {
	s, nobodys := strings.CutPrefix(s, arnPrefix+":"+arnSecret)
	name := s // with the label
	if strings.HasPrefix(s, arnPrefix) && !nobodys {
		account, behind := SecretName(s).cut()
		if account == "" {
			return SecretRef{}, errMalformedARN()
		}
		name = string(behind)
	}
	_, stage, labelled := strings.Cut(name, ":")
	ref := SecretRef{SecretName: SecretName(s), VersionStage: VersionStage(stage)}
	if labelled {
		ref.SecretName = SecretName(s[:len(s)-len(stage)-1])
		if stage == "" {
			return SecretRef{}, InvalidParameter("VersionStage", "the label after ':' is empty")
		}
	}
	if err := ref.Validate(); err != nil {
		return SecretRef{}, err
	}
	return ref, nil
}

// Validate checks length and alphabet of every part that is set. It returns an [*Error] that
// wraps [ErrInvalidParameter].
func (r SecretRef) Validate() error {
	err := r.SecretName.Validate()
	if err == nil && r.VersionID != "" {
		err = r.VersionID.Validate()
	}
	if err == nil && r.VersionStage != "" {
		err = r.VersionStage.Validate()
	}
	return err
}

// WithDefaults returns r with the stage spelled out: ACSCurrent when r names neither a
// version nor a stage.
func (r SecretRef) WithDefaults() SecretRef {
	if r.VersionID == "" && r.VersionStage == "" {
		r.VersionStage = ACSCurrent
	}
	return r
}

// String returns the form that [ParseSecretRef] reads, with a version id as " (version ID)"
// after it; of a computed reference no part. It is for people; use the fields to act.
func (r SecretRef) String() string {
	if r.Computed {
		return "(a computed name)"
	}
	s := string(r.SecretName)
	if r.VersionStage != "" {
		s += ":" + string(r.VersionStage)
	}
	if r.VersionID != "" {
		s += " (version " + string(r.VersionID) + ")"
	}
	return s
}

// An ARN is acs:kms:REGION:ACCOUNT:secret/NAME.
const (
	arnPrefix = "acs:kms:"
	arnSecret = ":secret/"
)

func errMalformedARN() error {
	return InvalidParameter("SecretName", "an ARN has the form acs:kms:REGION:ACCOUNT:secret/NAME")
}

// cut returns the two sides of :secret/ in an ARN; for a name the account is empty.
func (n SecretName) cut() (account string, name SecretName) {
	if strings.HasPrefix(string(n), arnPrefix) {
		if before, after, ok := strings.Cut(string(n), arnSecret); ok {
			return before, SecretName(after)
		}
	}
	return "", n
}

// Account returns the part of an ARN that says whose secret it is, acs:kms:REGION:ACCOUNT; it is
// empty for a name, which means a secret of the backend's own account.
func (n SecretName) Account() string {
	account, _ := n.cut()
	return account
}

// Name returns the name alone, without the region and account of an ARN.
func (n SecretName) Name() SecretName {
	_, name := n.cut()
	return name
}

// Validate checks form, length and alphabet.
func (n SecretName) Validate() error {
	account, name := n.cut()
	if strings.HasPrefix(string(n), arnPrefix) && !validAccount.MatchString(account) {
		return errMalformedARN()
	}
	return validateIdentifier("SecretName", string(name), MaxSecretNameLen)
}

// validAccount matches what stands before :secret/ in an ARN. Region or account may be empty.
var validAccount = regexp.MustCompile(`^acs:kms:([A-Za-z0-9-]{1,64}:[A-Za-z0-9-]{0,64}|:[A-Za-z0-9-]{1,64})$`)

// Validate checks length and alphabet.
func (v VersionID) Validate() error {
	return validateIdentifier("VersionId", string(v), MaxVersionIDLen)
}

// Validate checks length and alphabet.
func (s VersionStage) Validate() error {
	return validateIdentifier("VersionStage", string(s), MaxVersionStageLen)
}

func validateIdentifier(param, s string, maxLen int) error {
	if s == "" {
		return MissingParameter(param)
	}
	if len(s) > maxLen {
		return InvalidParameter(param, fmt.Sprintf("it has %d characters, at most %d are allowed", len(s), maxLen))
	}
	for i := range len(s) {
		if !identifierByte(s[i]) {
			return InvalidParameter(param, fmt.Sprintf("character %d is not one of A-Z a-z 0-9 _ / + = . @ -", i+1))
		}
	}
	return nil
}

func identifierByte(c byte) bool {
	switch {
	case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9':
		return true
	}
	return strings.IndexByte("_/+=.@-", c) >= 0
}
