package convert

import (
	"slices"
	"strconv"
	"strings"

	"secretagent/upstream"
)

// renamed are functions that ours have under another name, with the same arguments.
var renamed = map[string]string{
	"toLower": "lower", "toUpper": "upper", "toTitle": "title",
	"trimSpace": "trim", "split": "splitList", "replaceAll": "replace",
	"toUnescapedJSON": "toJSON", "toUnescapedJSONPretty": "toJSONPretty",
	"sha256Hex": "sha256sum", "contains": "has",
	"multiply": "mul", "minimum": "min", "maximum": "max",
	"parseInt": "int64", "parseUint": "int64", "parseFloat": "float64",
}

// turned are those whose first argument is the last of ours.
var turned = map[string]string{"subtract": "sub", "divide": "div", "modulo": "mod", "in": "has"}

// Why functions have no counterpart.
const (
	noDiscovery = "it asks Consul or Nomad who runs where; render files with that by consul-template, as before"
	noTree      = "it lists keys; store them as the fields of one secret and range over secretJSON \"name\""
	noFiles     = "a template reads no files; store the content as a secret"
	noClock     = "the same secrets must give the same file: a template reads no clock and runs no program"
	noSets      = "has looks for one element; and, or and not combine several"
	noScratch   = "use a variable: {{ $x := … }}"
)

var without = map[string]string{
	"service": noDiscovery, "services": noDiscovery, "node": noDiscovery, "nodes": noDiscovery, "datacenters": noDiscovery,
	"connect": noDiscovery, "caRoots": noDiscovery, "caLeaf": noDiscovery, "peerings": noDiscovery, "partitions": noDiscovery,
	"exportedServices": noDiscovery, "byTag": noDiscovery, "byMeta": noDiscovery, "byPort": noDiscovery, "sockaddr": noDiscovery,
	"nomadServices": noDiscovery, "nomadService": noDiscovery, "nomadVar": noDiscovery, "nomadVarList": noDiscovery,
	"nomadVarListSafe": noDiscovery, "nomadVarExists": noDiscovery,

	"ls": noTree, "safeLs": noTree, "tree": noTree, "safeTree": noTree, "secrets": noTree, "byKey": noTree, "explode": noTree,
	"explodeMap": noTree, "keyExistsGet": noTree,

	"file": noFiles, "plugin": noClock, "timestamp": noClock, "scratch": noScratch,
	"pkiCert":         "Vault issues this certificate; store certificate and key as fields of a secret",
	"writeToFile":     "each file is a template of its own; files that belong together make a set",
	"executeTemplate": `{{ template "name" . }} does it`,
	"parseBool":       `compare the text: eq .x "true"`,
	"containsAny":     noSets, "containsAll": noSets, "containsNone": noSets, "containsNotAll": noSets,
	"splitToMap": "store the fields as one JSON object and read them with secretJSON",
	"mergeMap":   "merge is near", "mergeMapWithOverride": "mergeOverwrite is near",
	"md5sum": "sha256sum is the digest that there is", "hmacSHA256Hex": "store the digest as a field of the secret",
	"trimLeft": "trimAll and trimPrefix are near", "trimRight": "trimAll and trimSuffix are near",
}

// function rewrites a call. The piped value, if there is one, is the last argument.
func (r *rewriter) function(name string, args []value, piped *value) value {
	all := args
	if piped != nil {
		all = append(slices.Clip(args), *piped)
	}
	switch name {
	case "secret", "vault":
		return r.secret(all)
	case "key", "keyOrDefault", "keyExists", "key_or_default", "key_exists":
		return r.key(strings.ReplaceAll(name, "_", ""), all)
	case "env", "mustEnv", "envOrDefault", "sprig_env":
		return r.env(strings.TrimPrefix(name, "sprig_"), all)
	}
	if to, order := sameAs(name, all); order != nil {
		name, args, piped = to, order, nil
	} else {
		name = to
	}
	if reason := without[name]; reason != "" {
		return r.fail(name, reason)
	}
	if ours, ok := strings.CutPrefix(name, "sprig_"); ok {
		name = ours
	}
	if !r.opts.Function(name) {
		return r.fail(name, "templates here do not have this function")
	}
	v := value{text: name, operand: len(args) == 0 && piped == nil}
	for _, arg := range args {
		v.text += " " + r.whole(arg).enclosed().text
	}
	if strings.HasPrefix(name, "parse") { // parseJSON and its like give objects
		v.shape = document
	}
	if name == "printf" && piped == nil {
		v.format = args
	}
	if piped != nil {
		v.text = r.whole(*piped).text + " | " + v.text
	}
	return v
}

// sameAs returns the function of ours that does the same, and its arguments where they differ.
func sameAs(name string, all []value) (ours string, args []value) {
	switch {
	case name == "index" && len(all) > 1 && all[0].shape == data && all[1].constant && all[1].is == "data":
		fields := all[0]
		fields.shape = document
		return name, append([]value{fields}, all[2:]...)
	case name == "trim" && len(all) == 2:
		return "trimAll", nil
	case name == "loop" && len(all) == 1:
		return "until", nil
	case name == "loop":
		return "untilStep", append(slices.Clip(all), value{text: "1", operand: true})
	case name == "regexReplaceAll" && len(all) == 3: // ours has the text before what replaces
		return name, []value{all[0], all[2], all[1]}
	case turned[name] != "" && len(all) == 2:
		return turned[name], []value{all[1], all[0]}
	case renamed[name] != "":
		return renamed[name], nil
	}
	return name, nil
}

// key rewrites a read of Consul's store.
func (r *rewriter) key(name string, args []value) value {
	if len(args) == 0 || !args[0].constant {
		return r.fail(name+" of a computed path", `write it as secret (printf "NAME/%s" …)`)
	}
	path, at, inOther := strings.Cut(strings.Trim(args[0].is, "/"), "@")
	if err := upstream.SecretName(path).Validate(); err != nil {
		return r.fail(name+" "+strconv.Quote(path), "it is no name of a secret: "+err.Error())
	}
	if inOther {
		r.note(r.file, r.line, name+" "+strconv.Quote(path), "is read without the datacenter "+at)
	}
	r.named("the Consul key "+path, path)
	switch {
	case strings.EqualFold(name, "keyOrDefault") && len(args) == 2:
		return value{text: "secretOr " + strconv.Quote(path) + " " + args[1].enclosed().text}
	case strings.EqualFold(name, "keyExists"):
		return value{text: "not (empty (secretOr " + strconv.Quote(path) + ` ""))`}
	}
	return value{text: "secret " + strconv.Quote(path)}
}

// env puts the value that was given for a variable of the environment in its place.
func (r *rewriter) env(function string, args []value) value {
	if len(args) == 0 || !args[0].constant {
		return r.fail(function+" of a computed name", "a template reads no environment: write the value into it")
	}
	name := args[0].is
	if text, given := r.opts.Env[name]; given {
		return value{text: strconv.Quote(text), operand: true, constant: true, is: text}
	}
	if function == "envOrDefault" && len(args) == 2 {
		r.note(r.file, r.line, function+" "+strconv.Quote(name), "the default was put in its place; --env "+name+"=VALUE puts another")
		return args[1]
	}
	return r.fail(function+" "+strconv.Quote(name), "a template reads no environment: convert with --env "+name+"=VALUE, which writes the value into it")
}
