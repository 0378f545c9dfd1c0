"""What to download for the public data sets, and how the folder must look, as messages tell it."""

CITYSCAPES = """\
Download leftImg8bit_trainvaltest.zip (11 GB) and gtFine_trainvaltest.zip (241 MB) from
https://www.cityscapes-dataset.com/downloads/ (registration is free) and extract both into one folder, which then holds
  leftImg8bit/{train,val,test}/CITY/*_leftImg8bit.png
  gtFine/{train,val}/CITY/*_gtFine_labelIds.png (or *_gtFine_labelTrainIds.png)"""

VOC2012 = """\
Download VOCtrainval_11-May-2012.tar (2 GB) from http://host.robots.ox.ac.uk/pascal/VOC/voc2012/ and extract it: the
folder then holds VOCdevkit/VOC2012 with
  JPEGImages/*.jpg
  SegmentationClass/*.png
  ImageSets/Segmentation/{train,val,trainval}.txt"""

VOC2012_AUG = """\
Either put the augmented labels into VOC2012/SegmentationClassAug/*.png, their names into
VOC2012/ImageSets/Segmentation/aug.txt; or download SBD's benchmark.tgz (1.4 GB) from
https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/benchmark.tgz, extract it, and add
--sbd=FOLDER/benchmark_RELEASE"""

ADE20K = """\
Download ADEChallengeData2016.zip (923 MB) from http://data.csail.mit.edu/places/ADEchallenge/ and extract it: the
folder then holds
  images/{training,validation}/*.jpg
  annotations/{training,validation}/*.png"""

LOVEDA = """\
Download Train.zip and Val.zip of LoveDA from https://zenodo.org/record/5706578 and extract them: the folder then holds
  {Train,Val}/{Rural,Urban}/images_png/*.png
  {Train,Val}/{Rural,Urban}/masks_png/*.png"""

MAPILLARY = """\
Download Mapillary Vistas from https://www.mapillary.com/dataset/vistas (after registering) and extract it: the folder
then holds
  {training,validation}/images/*.jpg
  {training,validation}/v1.2/labels/*.png"""

PASCAL_CONTEXT = """\
Download VOCtrainval_03-May-2010.tar from http://host.robots.ox.ac.uk/pascal/VOC/voc2010/ and
https://codalabuser.blob.core.windows.net/public/trainval_merged.json, and make labels and lists with MMSegmentation's
tools/dataset_converters/pascal_context.py: the folder VOCdevkit/VOC2010 then holds
  JPEGImages/*.jpg
  SegmentationClassContext/*.png, of 0 (background) to 59
  ImageSets/SegmentationContext/{train,val}.txt"""

POTSDAM = """\
Download Potsdam of https://www.isprs.org/education/benchmarks/UrbanSemLab/ (after registering) and extract its archives
2_Ortho_RGB.zip and 5_Labels_all_noBoundary.zip into one folder, which then holds, in any sub-folders,
  top_potsdam_*_RGB.tif
  top_potsdam_*_label_noBoundary.tif"""

VAIHINGEN = """\
Download Vaihingen of https://www.isprs.org/education/benchmarks/UrbanSemLab/ (after registering) and extract its
archives ISPRS_semantic_labeling_Vaihingen.zip and ISPRS_semantic_labeling_Vaihingen_ground_truth_eroded_COMPLETE.zip
into one folder, which then holds, in any sub-folders,
  top_mosaic_09cm_area*.tif (those in gts_for_participants are no pictures, and left out)
  top_mosaic_09cm_area*_noBoundary.tif"""

ISAID = """\
Download the pictures of DOTA v1.0 (https://captain-whu.github.io/DOTA/dataset.html) and the semantic masks of iSAID
(https://captain-whu.github.io/iSAID/dataset.html), and extract each archive where it lies: the folder then holds
  {train,val}/images/images/P*.png
  {train,val}/Semantic_masks/images/P*_instance_color_RGB.png"""

HOW_TO = {
    "ade20k": ADE20K,
    "isaid": ISAID,
    "pascal_context": PASCAL_CONTEXT,
    "pascal_context_59": PASCAL_CONTEXT,
    "potsdam": POTSDAM,
    "vaihingen": VAIHINGEN,
    "cityscapes": CITYSCAPES,
    "loveda": LOVEDA,
    "mapillary": MAPILLARY,
    "voc2012": f"{VOC2012}\n"
    f"and, for trainaug (10,582 pictures), which the published figures were trained on:\n{VOC2012_AUG}",
}
