// Package rejected is a look at what endpoints have refused for good: the messages of the stream REJECTED, with the endpoint's answer, the series and the samples.
//
// The writer service decodes them to send them again; [Shelf] lists them and opens one for people.
package rejected
