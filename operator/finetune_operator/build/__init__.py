"""From a plan to the manifests of its objects, as plain dictionaries for server-side apply.

Pure, one file for each noun: `storage`, `config`, `prepare`, `service`, `indexed_job`; `pod` is the template that the
two kinds of Job share, `manifest` what every object has.

A manifest carries the digest of its own content. An object that has the same digest is as it should be. NB: a Job
cannot be changed once it is made (its template is immutable), so a Job is made when it is missing and then left alone;
so is a claim, which keeps what is on it.
"""
