"""When does what happen in this video? ActionFormer, SnapFormer and TBTFormer on features of any extractor."""
