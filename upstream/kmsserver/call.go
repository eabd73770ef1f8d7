package kmsserver

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"secretagent/upstream"
)

// maxListed bounds the members of a .N list; the API allows fifty at most.
const maxListed = 128

// call is one call of an action by a caller who may make it. Its methods decode parameters;
// their errors name the parameter.
type call struct {
	manager   upstream.Manager
	params    params
	key       *accessKey // nil: a trusted caller
	requestID string
}

// secret returns the secret that a parameter names, by name or ARN. Every secret a call uses
// passes here or through permit: this is where a key's globs are applied. A name that is not
// allowed is forbidden whether it exists or not.
func (c *call) secret(param string) (upstream.SecretName, error) {
	return c.permit(param, c.params[param])
}

func (c *call) permit(param, value string) (upstream.SecretName, error) {
	if value == "" {
		return "", upstream.MissingParameter(param)
	}
	ref, err := upstream.ParseSecretRef(value)
	if err != nil {
		return "", err
	}
	if ref.VersionStage != "" {
		return "", upstream.InvalidParameter(param, "it holds a colon; a label is a parameter of its own")
	}
	if !c.key.mayUse(ref.SecretName) {
		return "", errForbidden()
	}
	return ref.SecretName, nil
}

// text checks that what a client sent is text, as JSON answers can carry nothing else.
func (c *call) text() error {
	for name, value := range c.params {
		if !utf8.ValidString(value) {
			return upstream.InvalidParameter(name, "it is not UTF-8")
		}
	}
	return nil
}

func (c *call) flag(param string) (bool, error) {
	switch value := c.params[param]; {
	case value == "", strings.EqualFold(value, "false"):
		return false, nil
	case strings.EqualFold(value, "true"):
		return true, nil
	}
	return false, upstream.InvalidParameter(param, "it is neither true nor false")
}

// number returns zero for an absent parameter and refuses one outside the range: behind it,
// zero means the default.
func (c *call) number(param string, least, most int) (int, error) {
	value := c.params[param]
	if value == "" {
		return 0, nil
	}
	n, err := strconv.Atoi(value)
	if err != nil {
		return 0, upstream.InvalidParameter(param, "it is not a number")
	}
	if n < least || n > most {
		return 0, upstream.InvalidParameter(param, fmt.Sprintf("it is not in the range %d to %d", least, most))
	}
	return n, nil
}

func (c *call) page() (upstream.Page, error) {
	number, err := c.number("PageNumber", 1, 1<<31-1)
	if err != nil {
		return upstream.Page{}, err
	}
	size, err := c.number("PageSize", 1, 100)
	return upstream.Page{Number: number, Size: size}, err
}

// decodeJSON reads JSON out of a parameter; an absent one leaves target alone.
func (c *call) decodeJSON(param string, target any) error {
	value := c.params[param]
	if value == "" {
		return nil
	}
	if err := json.Unmarshal([]byte(value), target); err != nil {
		return upstream.InvalidParameter(param, "it is not JSON of the documented form")
	}
	return nil
}

// stages reads VersionStages: a JSON array, or the object around it that one page of the
// documentation shows. Absent means nil.
func (c *call) stages() ([]upstream.VersionStage, error) {
	const param = "VersionStages"
	if strings.HasPrefix(strings.TrimSpace(c.params[param]), "{") {
		var wrapped struct{ VersionStage []upstream.VersionStage }
		if err := c.decodeJSON(param, &wrapped); err != nil {
			return nil, err
		}
		if wrapped.VersionStage == nil {
			return nil, upstream.InvalidParameter(param, "it has no member VersionStage")
		}
		return wrapped.VersionStage, nil
	}
	var stages []upstream.VersionStage
	if err := c.decodeJSON(param, &stages); err != nil {
		return nil, err
	}
	if stages == nil && c.params[param] != "" {
		return nil, upstream.InvalidParameter(param, "it is null")
	}
	return stages, nil
}

// list reads a list of texts: NAME.1, NAME.2, … or a JSON array in NAME. Absent means nil.
func (c *call) list(param string) ([]string, error) {
	members, err := c.members(param)
	if err != nil {
		return nil, err
	}
	var list []string
	for _, m := range members {
		if m.field != "" {
			return nil, upstream.InvalidParameter(param, "its members have no fields")
		}
		list = append(list, m.value)
	}
	if whole := c.params[param]; whole != "" {
		if list != nil {
			return nil, upstream.InvalidParameter(param, "it is given as a whole and by members")
		}
		if !strings.HasPrefix(strings.TrimSpace(whole), "[") {
			return []string{whole}, nil
		}
		err = c.decodeJSON(param, &list)
	}
	return list, err
}

// pairs reads a list of tags: NAME.1.Key, NAME.1.Value, … or a JSON array in NAME. A value
// that is left out is empty.
func (c *call) pairs(param string) ([]upstream.Tag, error) {
	members, err := c.members(param)
	if err != nil {
		return nil, err
	}
	var tags []upstream.Tag
	last := 0
	for _, m := range members {
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
			return nil, upstream.InvalidParameter(param, "its members have the fields Key and Value")
		}
	}
	if c.params[param] != "" {
		if tags != nil {
			return nil, upstream.InvalidParameter(param, "it is given as a whole and by members")
		}
		if err := c.decodeJSON(param, &tags); err != nil {
			return nil, err
		}
	}
	for _, tag := range tags {
		if tag.Key == "" {
			return nil, upstream.MissingParameter(param + ".Key")
		}
	}
	return tags, nil
}

// member is one parameter NAME.index or NAME.index.field.
type member struct {
	index        int
	field, value string
}

func (c *call) members(param string) ([]member, error) {
	var members []member
	for name, value := range c.params {
		rest, ok := strings.CutPrefix(name, param+".")
		if !ok {
			continue
		}
		number, field, _ := strings.Cut(rest, ".")
		index, err := strconv.Atoi(number)
		if err != nil || index < 1 || strconv.Itoa(index) != number {
			return nil, upstream.InvalidParameter(param, "its members are numbered from 1")
		}
		members = append(members, member{index, field, value})
	}
	if len(members) > 2*maxListed {
		return nil, upstream.InvalidParameter(param, "it has too many members")
	}
	slices.SortFunc(members, func(a, b member) int {
		if a.index != b.index {
			return a.index - b.index
		}
		return strings.Compare(a.field, b.field)
	})
	return members, nil
}

// wireTag is a tag in answers and in the parameters of the singular actions.
type wireTag struct{ TagKey, TagValue string }

func (c *call) wireTags(param string) ([]upstream.Tag, error) {
	var tags []wireTag
	if err := c.decodeJSON(param, &tags); err != nil {
		return nil, err
	}
	var out []upstream.Tag
	for _, tag := range tags {
		if tag.TagKey == "" {
			return nil, upstream.InvalidParameter(param, "a tag has no TagKey")
		}
		out = append(out, upstream.Tag{Key: tag.TagKey, Value: tag.TagValue})
	}
	return out, nil
}

// tagKeys reads TagKeys: a JSON array, or keys with commas between them.
func (c *call) tagKeys() ([]string, error) {
	const param = "TagKeys"
	value := c.params[param]
	if value == "" {
		return nil, upstream.MissingParameter(param)
	}
	keys := strings.Split(value, ",")
	if strings.HasPrefix(strings.TrimSpace(value), "[") {
		keys = nil
		if err := c.decodeJSON(param, &keys); err != nil {
			return nil, err
		}
	}
	if len(keys) == 0 || slices.Contains(keys, "") {
		return nil, upstream.InvalidParameter(param, "a key is empty")
	}
	return keys, nil
}

// customData reads ExtendedConfig.CustomData: a JSON object, as the older SDK sends it, or
// one parameter per member, as the newer one does.
func (c *call) customData() (map[string]string, error) {
	const param = "ExtendedConfig.CustomData"
	var custom map[string]string
	if err := c.decodeJSON(param, &custom); err != nil {
		return nil, err
	}
	for name, value := range c.params {
		if key, ok := strings.CutPrefix(name, param+"."); ok {
			if custom == nil {
				custom = map[string]string{}
			}
			custom[key] = value
		}
	}
	return custom, nil
}

// taggedSecret returns the secret that a singular tag action selects.
func (c *call) taggedSecret() (upstream.SecretName, error) {
	given := 0
	for _, param := range []string{"KeyId", "SecretName", "CertificateId"} {
		if c.params[param] != "" {
			given++
		}
	}
	switch {
	case given == 0:
		return "", upstream.MissingParameter("SecretName")
	case given > 1:
		return "", upstream.InvalidParameter("SecretName", "exactly one of KeyId, SecretName and CertificateId is allowed")
	case c.params["SecretName"] == "":
		return "", errUnsupported("only secrets are served here, no keys and certificates.")
	}
	return c.secret("SecretName")
}

// taggedSecrets returns the secrets that a plural tag action names.
func (c *call) taggedSecrets() ([]upstream.SecretName, error) {
	switch c.params["ResourceType"] {
	case "secret":
	case "":
		return nil, upstream.MissingParameter("ResourceType")
	case "key":
		return nil, errUnsupported("only secrets are served here, no keys.")
	default:
		return nil, upstream.InvalidParameter("ResourceType", "it is neither key nor secret")
	}
	ids, err := c.list("ResourceId")
	if err != nil {
		return nil, err
	}
	var names []upstream.SecretName
	for _, id := range ids {
		name, err := c.permit("ResourceId", id)
		if err != nil {
			return nil, err
		}
		names = append(names, name)
	}
	return names, nil
}

// run calls the action and returns the body of the answer.
func (c *call) run(ctx context.Context, act action) ([]byte, error) {
	if err := c.text(); err != nil {
		return nil, err
	}
	answer, err := act(ctx, c)
	if err != nil {
		return nil, err
	}
	if body, ok := answer.([]byte); ok {
		return body, nil
	}
	return encode(answer), nil
}
