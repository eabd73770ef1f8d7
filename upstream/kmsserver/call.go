package kmsserver

import (
	"cmp"
	"context"
	"encoding/json"
	"maps"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"secretagent/upstream"
)

// maxListed bounds the members of a .N list; the API allows fifty at most.
const maxListed = 128

// call is one call of an action by a caller who may make it. Its methods decode parameters.
// The first that fails leaves its error, which names the parameter, in err, and the call is
// then not made, see [action].
type call struct {
	*exchange
	manager upstream.Manager
	params  params
	err     error
}

// action decodes the parameters of a call and returns how to make it. That returns the answer:
// a value to be encoded as JSON, or the finished body. [call.run] makes no call whose
// parameters could not be decoded.
type action func(c *call) perform

type perform func(ctx context.Context) (any, error)

// run makes the call and returns the body of the answer.
func (c *call) run(ctx context.Context, act action) ([]byte, error) {
	for name, value := range c.params { // JSON answers can carry nothing else
		if !utf8.ValidString(value) {
			c.invalid(name, "it is not UTF-8")
		}
	}
	do := act(c)
	if c.err != nil {
		return nil, c.err
	}
	answer, err := do(ctx)
	if err != nil {
		return nil, err
	}
	if body, ok := answer.([]byte); ok {
		return body, nil
	}
	return encode(answer), nil
}

func (c *call) fail(err error) {
	if c.err == nil {
		c.err = err
	}
}

func (c *call) missing(param string)      { c.fail(upstream.MissingParameter(param)) }
func (c *call) invalid(param, why string) { c.fail(upstream.InvalidParameter(param, why)) }

// common are the parameters that any request may carry: none changes an answer but Format. SourceIp
// and SecureTransport say from where it comes.
var common = []string{
	"Action", "Version", "Format", "RegionId", "AccessKeyId", "SecurityToken", "Timestamp",
	"Signature", "SignatureMethod", "SignatureVersion", "SignatureNonce", "SignatureType", "SourceIp", "SecureTransport",
}

// knows says which parameters an action has whose answer holds a secret. Any other that is given
// is refused: it may ask for the secret in another form, and must not be answered in this one.
// Actions whose answers hold none ignore what they do not know, as the service does.
func (c *call) knows(names ...string) {
	for _, name := range slices.Sorted(maps.Keys(c.params)) {
		switch {
		case c.params[name] == "" || slices.Contains(names, name) || slices.Contains(common, name):
		case name == "Recipient":
			c.invalid(name, "no value is encrypted for a recipient here; leave it out, and the value is answered in clear")
		default:
			c.invalid(name, "this action does not know it, and answers with no secret that may be asked for in another form; leave it out")
		}
	}
}

// secret returns the secret that a parameter names, by name or ARN. Every secret a call uses
// passes here or through permit: this is where a key's globs are applied, to the name alone, as
// the backend serves no other account than its own. A name that is not allowed is forbidden
// whether it exists or not.
func (c *call) secret(param string) upstream.SecretName {
	return c.permit(param, c.params[param])
}

func (c *call) permit(param, value string) upstream.SecretName {
	if value == "" {
		c.missing(param)
		return ""
	}
	ref, err := upstream.ParseSecretRef(value)
	switch {
	case err != nil:
		c.fail(err)
	case ref.VersionStage != "":
		c.invalid(param, "it holds a colon; a label is a parameter of its own")
	case !c.key.mayUse(ref.SecretName.Name()):
		c.fail(errForbidden)
	default:
		return ref.SecretName
	}
	return ""
}

func (c *call) flag(param string) bool {
	switch strings.ToLower(c.params[param]) {
	case "", "false":
	case "true":
		return true
	default:
		c.invalid(param, "it is neither true nor false")
	}
	return false
}

// number returns zero for an absent parameter and refuses one that is given as zero: behind it,
// zero means the default.
func (c *call) number(param string) int {
	value := c.params[param]
	if value == "" {
		return 0
	}
	n, err := strconv.Atoi(value)
	if err != nil {
		c.invalid(param, "it is not a number")
	} else if n == 0 {
		c.invalid(param, "zero is not in the range")
	}
	return n
}

func (c *call) page() upstream.Page {
	return upstream.Page{Number: c.number("PageNumber"), Size: c.number("PageSize")}
}

// decodeJSON reads JSON out of a parameter; an absent one leaves target alone.
func (c *call) decodeJSON(param string, target any) {
	if value := c.params[param]; value != "" && json.Unmarshal([]byte(value), target) != nil {
		c.invalid(param, "it is not JSON of the documented form")
	}
}

// stages reads VersionStages: a JSON array, or the object around it that one page of the
// documentation shows. Absent means nil.
func (c *call) stages() []upstream.VersionStage {
	const param = "VersionStages"
	if strings.HasPrefix(strings.TrimSpace(c.params[param]), "{") {
		var wrapped struct{ VersionStage []upstream.VersionStage }
		c.decodeJSON(param, &wrapped)
		if wrapped.VersionStage == nil {
			c.invalid(param, "it has no member VersionStage")
		}
		return wrapped.VersionStage
	}
	var stages []upstream.VersionStage
	c.decodeJSON(param, &stages)
	if stages == nil && c.params[param] != "" {
		c.invalid(param, "it is null")
	}
	return stages
}

// list reads a list of texts: NAME.1, NAME.2, … or a JSON array in NAME. Absent means nil.
func (c *call) list(param string) []string {
	var list []string
	for _, m := range c.members(param) {
		if m.field != "" {
			c.invalid(param, "its members have no fields")
		}
		list = append(list, m.value)
	}
	whole := c.params[param]
	switch {
	case whole == "":
	case list != nil:
		c.invalid(param, "it is given as a whole and by members")
	case !strings.HasPrefix(strings.TrimSpace(whole), "["):
		list = []string{whole}
	default:
		c.decodeJSON(param, &list)
	}
	return list
}

// pairs reads a list of tags: NAME.1.Key, NAME.1.Value, … or a JSON array in NAME. A value
// that is left out is empty.
func (c *call) pairs(param string) []upstream.Tag {
	var tags []upstream.Tag
	last := 0
	for _, m := range c.members(param) {
		if m.index != last {
			tags = append(tags, upstream.Tag{})
			last = m.index
		}
		switch m.field {
		case "Key":
			tags[len(tags)-1].Key = m.value
		case "Value":
			tags[len(tags)-1].Value = m.value
		default:
			c.invalid(param, "its members have the fields Key and Value")
		}
	}
	if c.params[param] != "" {
		if tags != nil {
			c.invalid(param, "it is given as a whole and by members")
		}
		c.decodeJSON(param, &tags)
	}
	for _, tag := range tags {
		if tag.Key == "" {
			c.missing(param + ".Key")
		}
	}
	return tags
}

// member is one parameter NAME.index or NAME.index.field.
type member struct {
	index        int
	field, value string
}

func (c *call) members(param string) []member {
	var members []member
	for name, value := range c.params {
		rest, ok := strings.CutPrefix(name, param+".")
		if !ok {
			continue
		}
		number, field, _ := strings.Cut(rest, ".")
		index, err := strconv.Atoi(number)
		if err != nil || index < 1 || strconv.Itoa(index) != number {
			c.invalid(param, "its members are numbered from 1")
			return nil
		}
		members = append(members, member{index, field, value})
	}
	if len(members) > 2*maxListed {
		c.invalid(param, "it has too many members")
		return nil
	}
	slices.SortFunc(members, func(a, b member) int {
		return cmp.Or(cmp.Compare(a.index, b.index), cmp.Compare(a.field, b.field))
	})
	return members
}

// wireTag is a tag in answers and in the parameters of the singular actions.
type wireTag struct{ TagKey, TagValue string }

func (c *call) wireTags(param string) []upstream.Tag {
	var tags []wireTag
	c.decodeJSON(param, &tags)
	var out []upstream.Tag
	for _, tag := range tags {
		out = append(out, upstream.Tag{Key: tag.TagKey, Value: tag.TagValue})
	}
	return out
}

// tagKeys reads TagKeys: a JSON array, or keys with commas between them.
func (c *call) tagKeys() (keys []string) {
	const param = "TagKeys"
	if value := c.params[param]; strings.HasPrefix(strings.TrimSpace(value), "[") {
		c.decodeJSON(param, &keys)
	} else if value != "" {
		keys = strings.Split(value, ",")
	}
	return keys
}

// taggedSecret returns the secret that a singular tag action selects.
func (c *call) taggedSecret() upstream.SecretName {
	given := 0
	for _, param := range []string{"KeyId", "SecretName", "CertificateId"} {
		if c.params[param] != "" {
			given++
		}
	}
	switch {
	case given == 0:
		c.missing("SecretName")
	case given > 1:
		c.invalid("SecretName", "exactly one of KeyId, SecretName and CertificateId is allowed")
	case c.params["SecretName"] == "":
		c.fail(errUnsupported("only secrets are served here, no keys and certificates."))
	}
	return c.secret("SecretName")
}

// taggedSecrets returns the secrets that a plural tag action names.
func (c *call) taggedSecrets() []upstream.SecretName {
	switch c.params["ResourceType"] {
	case "secret":
	case "":
		c.missing("ResourceType")
	case "key":
		c.fail(errUnsupported("only secrets are served here, no keys."))
	default:
		c.invalid("ResourceType", "it is neither key nor secret")
	}
	var names []upstream.SecretName
	for _, id := range c.list("ResourceId") {
		names = append(names, c.permit("ResourceId", id))
	}
	return names
}
