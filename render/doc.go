// Package render turns secrets into files and keeps the files current.
//
// A target is what is rendered and published as one. A [Target] is a single file: a Go
// template, or a [Format] such as env or json with no template at all. A [Set] is a folder of
// files that belong together, such as a certificate and its key. [New] checks everything, as
// [Options.Validate] does, and reads the templates; [Renderer.RenderOnce] renders all targets
// and returns; [Renderer.Run] renders them and then follows every change:
//
//	r, err := render.New(secrets, render.Options{Targets: []render.Target{{
//		Content:     render.Content{Contents: `PASSWORD={{ secretField "app/db" "password" }}`},
//		Destination: "/run/app/app.env",
//	}}})
//	err = r.Run(ctx)
//
// # What a template may do
//
// It may read secrets and work on text. The helpers for secrets are
//
//	secret "name"                  the value as text; "name:Label" for another stage
//	secretJSON "name"              the value as an object or list; numbers stay exact
//	secretField "name" "field"     one field of a JSON value
//	secretVersion "name" "id"      one version, whatever its labels
//	secretVersionId "name"         the id of the version that secret "name" gives
//	secretOr "name" "default"      the default only when there is no such secret
//
// and besides them parseJSON, parseYAML, parseTOML, toJSON, toJSONPretty, toYAML, toTOML,
// base64Encode, base64Decode, base64URLEncode, base64URLDecode, the functions of text/template and
// the repeatable part of sprig, none of which hides an error, and for values in files of others
//
//	shellQuote         one word of sh, or a value of systemd's EnvironmentFile
//	propertiesEscape   a key or value of java.util.Properties
//	pgpassEscape       a field of PostgreSQL's password file
//	iniQuote           a value of a MySQL option file, of git config, of PHP's parse_ini_file
//	phpQuote           a string literal of PHP
//
// which take numbers and booleans too and refuse what their file cannot carry. Nothing reads
// the environment, files, the network, the clock or a random source: the same secrets give the
// same bytes. Which secrets a template reads is learned while it executes and need not be
// declared.
//
// A missing key, a null and a value that is no text (an object, a list) are errors, never
// "<no value>" in a file. An error names file, line and column and never quotes a value: of
// a failing function it says which one, not what it was given.
//
// # What a reader of the files sees
//
// A file is replaced by one rename: a reader sees the old or the new content, whole, with the
// final mode and owner. Every file is made of values from one moment of the source. When
// rendering or publishing fails, the old file stays and the attempt is repeated with a
// growing, jittered pause. Content that is equal is not written again; drifted mode or owner
// is repaired.
//
// A set is replaced by one rename too, see [Set] for what its readers must do.
//
// # Checks and hooks
//
// A [Check] looks at new content before it is published; while it fails, the old content stays.
//
// A [Hook] runs after a published change. It is owed until it succeeds, also across a restart
// when Options.StateDir is set, and never runs twice at the same time. Targets with an equal
// hook share one run when they change together.
//
// # Concurrency
//
// A [Renderer] is safe for concurrent use, but only one of Run, RenderOnce and Diff works at
// a time. Run starts its goroutines and waits for them before it returns. Status and Ready
// may be called at any moment.
//
// # Design notes
//
// A target goes this way, in a run as well as once: target.compute executes its contents
// against values of one moment, publisher.prepare completes them on disk under other names,
// Check.run lets a program look at them, Renderer.owing records the hook, prepared.commit renames, and Renderer.runHook runs the hook. A
// single file and a set differ in their layout only.
//
// Publishing is our own code. The package renameio cannot be built on Windows, always syncs,
// does not sync the folder, gives its temporary files their final mode while they are still
// empty, and names them in a way that a restarted agent could not recognise as its own
// leftovers.
//
// All file operations go through an [os.Root] of the destination's folder, so that a folder
// swapped for a symbolic link in the middle of a publish leads nowhere; with Options.Root the
// folder itself is reached through that root and cannot be outside of it. Without, a process of
// root first looks at every folder on the way (keyfile.CheckPath), each time that it opens one,
// and Validate says the same beforehand: whoever owns a folder on the way could exchange what is
// below it. The file operations do not take the rights of the target's user: that would need a
// thread of its own for each, and rights that a container often has not.
//
// Printing goes through a function of our own that is appended to every pipeline of the
// parsed template, the way html/template adds its escapers. That is what refuses nulls and
// objects, and it tells a diff exactly which bytes of the output came from an action: those
// are masked, the text of the template is shown. The output of checks and hooks is masked by the
// same bytes, besides the values themselves.
//
// Most helpers are sprig's. Ours replace those that hide an error, print it, lose digits of a
// number, depend on the order of a map, or allocate without a bound.
//
// What a hook owes is remembered by the identity of the published file (device and inode),
// not by a digest of its content: a digest of a short secret can be guessed, with or without
// a key stored beside it.
package render
