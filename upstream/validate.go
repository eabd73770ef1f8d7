package upstream

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Limits of the KMS API.
const (
	MaxSecretDataLen  = 30720 // bytes
	MaxDescriptionLen = 256   // characters
	MaxVersionStages  = 8     // labels of a secret, the built-in ones included
	MaxTags           = 20    // of a secret, and in a request
	MaxTagLen         = 128   // characters of a key or a value
	MaxTagSecrets     = 50    // secrets in a request about tags
	MaxPageSize       = 100
	TagRowsPerPage    = 200

	minRecoveryDays, maxRecoveryDays = 7, 30
	maxFilters, maxFilterLen         = 10, 256 // filters and values of one; characters of a value
)

// Validate checks what can be told without the backend. It fails with [ErrMissingParameter] or
// [ErrInvalidParameter].
func (in CreateSecretInput) Validate() error {
	if in.SecretName.Account() != "" {
		return InvalidParameter("SecretName", "a secret is created by its name, not by an ARN")
	}
	if strings.HasPrefix(string(in.SecretName), "acs/") {
		return InvalidParameter("SecretName", "names that start with acs/ belong to the service")
	}
	return cmp.Or(in.SecretName.Validate(), in.VersionID.Validate(),
		validateData(in.SecretData, in.SecretDataType), validateDescription(in.Description), validateTags(in.Tags))
}

// Validate checks what can be told without the backend. Beside [ErrMissingParameter] and
// [ErrInvalidParameter] it fails with [ErrLimitExceeded] for more labels than a secret carries.
func (in PutSecretValueInput) Validate() error {
	if err := cmp.Or(in.SecretName.Validate(), in.VersionID.Validate(), validateData(in.SecretData, in.SecretDataType)); err != nil {
		return err
	}
	switch {
	case in.VersionStages != nil && len(in.VersionStages) == 0:
		return InvalidParameter("VersionStages", "the list is empty; leave it out for ACSCurrent")
	case len(in.VersionStages) > MaxVersionStages:
		return &Error{
			Message: fmt.Sprintf("a secret has at most %d labels; VersionStages names %d", MaxVersionStages, len(in.VersionStages)),
			Err:     ErrLimitExceeded,
		}
	}
	return validateEach(in.VersionStages, VersionStage.Validate)
}

// Stages returns the labels of the new version: ACSCurrent when the request names none.
func (in PutSecretValueInput) Stages() []VersionStage {
	if in.VersionStages == nil {
		return []VersionStage{ACSCurrent}
	}
	return in.VersionStages
}

// Validate checks what can be told without the backend.
func (in UpdateSecretVersionStageInput) Validate() error {
	if err := cmp.Or(in.SecretName.Validate(), in.VersionStage.Validate()); err != nil {
		return err
	}
	switch {
	case in.MoveToVersion == "" && in.RemoveFromVersion == "":
		return MissingParameter("MoveToVersion")
	case in.MoveToVersion == "" && in.VersionStage.BuiltIn():
		return InvalidParameter("VersionStage", string(in.VersionStage)+" can be moved but not removed; name the version that gets it in MoveToVersion")
	}
	for _, id := range []VersionID{in.MoveToVersion, in.RemoveFromVersion} {
		if err := id.Validate(); id != "" && err != nil {
			return err
		}
	}
	return nil
}

// Validate checks what can be told without the backend.
func (in ListSecretVersionIDsInput) Validate() error {
	return cmp.Or(in.SecretName.Validate(), in.Page.validate())
}

// Validate checks what can be told without the backend.
func (in ListSecretsInput) Validate() error {
	if len(in.Filters) > maxFilters {
		return InvalidParameter("Filters", fmt.Sprintf("there are %d, at most %d are allowed", len(in.Filters), maxFilters))
	}
	return cmp.Or(in.Page.validate(), validateEach(in.Filters, Filter.validate))
}

func (f Filter) validate() error {
	longest, allowed := maxFilterLen, func(rune) bool { return true }
	switch f.Key {
	case "SecretName":
		longest, allowed = MaxSecretNameLen, func(r rune) bool { return r < utf8.RuneSelf && identifierByte(byte(r)) }
	case "TagKey", "TagValue":
		allowed = tagRune
	case "Description", "DKMSInstanceId", "SecretType", "Creator":
	default:
		return InvalidParameter("Filters", "a Key must be SecretName, Description, TagKey, TagValue, DKMSInstanceId, SecretType or Creator")
	}
	if len(f.Values) > maxFilters {
		return InvalidParameter("Filters", fmt.Sprintf("%s has %d values, at most %d are allowed", f.Key, len(f.Values), maxFilters))
	}
	for _, v := range f.Values {
		if n := utf8.RuneCountInString(v); n < 1 || n > longest {
			return InvalidParameter("Filters", fmt.Sprintf("a value of %s has %d characters; 1 to %d are allowed", f.Key, n, longest))
		}
		if strings.ContainsFunc(v, func(r rune) bool { return !allowed(r) }) {
			return InvalidParameter("Filters", fmt.Sprintf("a value of %s has a character that none can have", f.Key))
		}
	}
	return nil
}

// WithDefaults returns p with its defaults filled in: the first page, of that size.
func (p Page) WithDefaults(size int) Page {
	return Page{Number: cmp.Or(p.Number, 1), Size: cmp.Or(p.Size, size)}
}

// Span returns the index of the first element on the page and of the first one behind it.
// Defaults are filled in. Pages too far out to be counted are empty.
func (p Page) Span() (first, last int) {
	const most = 1 << 31
	if p.Number > most/MaxPageSize {
		return most, most
	}
	return (p.Number - 1) * p.Size, p.Number * p.Size
}

func (p Page) validate() error {
	switch {
	case p.Number < 0:
		return InvalidParameter("PageNumber", "pages are counted from 1")
	case p.Size < 0 || p.Size > MaxPageSize:
		return InvalidParameter("PageSize", fmt.Sprintf("%d is not in the range 1 to %d", p.Size, MaxPageSize))
	}
	return nil
}

// Validate checks what can be told without the backend.
func (in UpdateSecretInput) Validate() error {
	err := in.SecretName.Validate()
	if err == nil && in.Description != nil {
		err = validateDescription(*in.Description)
	}
	return err
}

// Validate checks what can be told without the backend.
func (in DeleteSecretInput) Validate() error {
	if err := in.SecretName.Validate(); err != nil || in.ForceDeleteWithoutRecovery {
		return err
	}
	if days := in.RecoveryWindowInDays; days != 0 && (days < minRecoveryDays || days > maxRecoveryDays) {
		return InvalidParameter("RecoveryWindowInDays", fmt.Sprintf("%d is not in the range %d to %d", days, minRecoveryDays, maxRecoveryDays))
	}
	return nil
}

// Window returns how long the secret can be restored.
func (in DeleteSecretInput) Window() time.Duration {
	return time.Duration(cmp.Or(in.RecoveryWindowInDays, maxRecoveryDays)) * 24 * time.Hour
}

// ValidateTagResources checks a request of [Manager.TagResources], as far as that can be told
// without the backend.
func ValidateTagResources(names []SecretName, tags []Tag) error {
	if len(tags) == 0 {
		return MissingParameter("Tags")
	}
	return cmp.Or(validateTags(tags), validateTagSecrets(names))
}

// Validate checks what can be told without the backend.
func (in UntagResourcesInput) Validate() error {
	switch {
	case len(in.TagKeys) == 0 && !in.All:
		return MissingParameter("TagKeys")
	case len(in.TagKeys) > MaxTags:
		return InvalidParameter("TagKeys", fmt.Sprintf("there are %d, at most %d are allowed", len(in.TagKeys), MaxTags))
	case slices.Contains(in.TagKeys, ""):
		return InvalidParameter("TagKeys", "one of them is empty")
	}
	return cmp.Or(validateEach(in.TagKeys, func(key string) error { return validateTagText("TagKeys", key) }), validateTagSecrets(in.SecretNames))
}

// Validate checks what can be told without the backend; NextToken is the backend's own.
func (in ListTagResourcesInput) Validate() error {
	if len(in.SecretNames) == 0 && len(in.Tags) > 0 {
		return validateTags(in.Tags)
	}
	return cmp.Or(validateTagSecrets(in.SecretNames), validateTags(in.Tags))
}

func validateTagSecrets(names []SecretName) error {
	switch {
	case len(names) == 0:
		return MissingParameter("ResourceId")
	case len(names) > MaxTagSecrets:
		return InvalidParameter("ResourceId", fmt.Sprintf("there are %d, at most %d are allowed", len(names), MaxTagSecrets))
	}
	return validateEach(names, SecretName.Validate)
}

func validateTags(tags []Tag) error {
	if len(tags) > MaxTags {
		return InvalidParameter("Tags", fmt.Sprintf("there are %d, at most %d are allowed", len(tags), MaxTags))
	}
	return validateEach(tags, func(tag Tag) error {
		switch {
		case tag.Key == "":
			return InvalidParameter("TagKey", "it is empty")
		case strings.HasPrefix(tag.Key, "aliyun"), strings.HasPrefix(tag.Key, "acs:"):
			return InvalidParameter("TagKey", "it must not start with aliyun or acs:")
		}
		return cmp.Or(validateTagText("TagKey", tag.Key), validateTagText("TagValue", tag.Value))
	})
}

func validateTagText(param, text string) error {
	if n := utf8.RuneCountInString(text); n > MaxTagLen {
		return InvalidParameter(param, fmt.Sprintf("it has %d characters, at most %d are allowed", n, MaxTagLen))
	}
	if i := strings.IndexFunc(text, func(r rune) bool { return !tagRune(r) }); i >= 0 {
		return InvalidParameter(param, fmt.Sprintf(`byte %d is not part of a letter, a digit or one of / \ _ - . + = : @`, i+1))
	}
	return nil
}

func tagRune(r rune) bool {
	return unicode.IsLetter(r) || unicode.IsDigit(r) || strings.ContainsRune(`/\_-.+=:@`, r)
}

func validateData(data SecretData, dataType string) error {
	switch {
	case data.Len() == 0:
		return MissingParameter("SecretData")
	case data.Len() > MaxSecretDataLen:
		return InvalidParameter("SecretData", fmt.Sprintf("it has %d bytes, at most %d are allowed", data.Len(), MaxSecretDataLen))
	case !utf8.Valid(data.Reveal()):
		return InvalidParameter("SecretData", "it is not valid UTF-8; encode it with base64 and set SecretDataType to binary")
	case dataType != "" && dataType != DataTypeText && dataType != DataTypeBinary:
		return InvalidParameter("SecretDataType", "it must be text or binary")
	}
	return nil
}

func validateDescription(text string) error {
	if !utf8.ValidString(text) {
		return InvalidParameter("Description", "it is not valid UTF-8")
	}
	if n := utf8.RuneCountInString(text); n > MaxDescriptionLen {
		return InvalidParameter("Description", fmt.Sprintf("it has %d characters, at most %d are allowed", n, MaxDescriptionLen))
	}
	return nil
}

// validateEach returns the first problem of the elements.
func validateEach[T any](all []T, validate func(T) error) error {
	for _, one := range all {
		if err := validate(one); err != nil {
			return err
		}
	}
	return nil
}
